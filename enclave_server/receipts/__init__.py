"""The log of receipts: on disk, at a remote log, and what is answered from it."""
