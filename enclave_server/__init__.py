"""The gateway that runs inside the confidential VM: it holds the keys, attests them, and signs every answer.

`enclave_server.app.create_app` builds the ASGI application, `enclave_server.commands.serve` puts all parts together, and
`python -m enclave_server` is the command line. Nothing is imported here: each command loads what it needs.
"""
