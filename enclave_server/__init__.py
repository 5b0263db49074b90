"""The gateway that runs inside the confidential VM: it holds the keys, attests them, and signs every answer.

`create_app` builds the ASGI application; `python -m enclave_server` is the command line and the only wiring.
"""

from enclave_server.app import create_app

__all__ = ["create_app"]
