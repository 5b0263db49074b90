"""Boots an image without special hardware, and shows that what was predicted is what happens. Start at `run.selftest`."""
