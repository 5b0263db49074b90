"""Every number that a boot will show, computed from the image's files and its firmware, without booting anything.

A value is predicted for a named profile (a VMM and a firmware together) and a named shape (CPUs, memory, GPUs), because
it depends on them. What cannot be computed is left out, with the reason, and never guessed. Start at `plan.measure`.
"""
