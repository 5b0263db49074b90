"""The database's forms, one after the other. Never change one that was released: add another."""
