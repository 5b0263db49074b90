"""Alembic's entry: `Store.migrate` gives it an open transaction."""

from alembic import context

from enclave_server.access.store import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
