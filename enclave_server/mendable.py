"""What operators can mend. `enclave-server` imports this, and none of the modules whose errors these are, to tell them apart."""


class MendableError(Exception):
    """Its text is one line for an operator: what is wrong, and what to do."""
