"""A module for each command of `enclave-server`; `__main__.py` lists them, and imports one when it is run."""
