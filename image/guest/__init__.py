"""What runs as process 1 inside the confidential VM: `init.py` from the initrd, then `start.py` from the root.

Standard library only: the rest of the project is not in the initrd. docs/operate.md says what it demands, docs/threat-model.md why.
"""
