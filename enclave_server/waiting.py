"""What answers while the gateway cannot have an identity yet: that it lives, and that it is not ready.

The statement names the version of the engine, so there are neither keys nor evidence until one that somebody else runs
has answered. Whoever looks after the gateway is not to take that wait for its death. A process of its own answers, over
TLS with a key that no statement names: a client that verifies finds no evidence, and sends nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from enclave_server.asgi import Receive, Scope, Send
from enclave_server.errors import engine_unavailable
from enclave_server.framing import Framing
from enclave_server.identity import nobodys_context
from enclave_server.prefork import fork
from enclave_server.server import QUIET

_REASON = "engine_unreachable"


@contextmanager
def alive(listener: socket.socket) -> Iterator[None]:
    """Answer there for as long as the block lasts. The listener stays open: who comes at its end is answered by what follows."""
    pid = fork(lambda: _answer(listener))
    try:
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


class Few(Framing):
    """So few connections that strangers who say nothing cost nothing, and make room for whoever asks how it is."""

    most = 64


def _answer(listener: socket.socket) -> int:
    server = uvicorn.Server(
        uvicorn.Config(
            _app,
            http=Few,
            lifespan="off",
            **QUIET,
            ssl_context_factory=lambda _config, _default: nobodys_context(),
        )
    )
    server.run(sockets=[listener])
    return 0


async def _app(scope: Scope, _receive: Receive, send: Send) -> None:
    error = engine_unavailable(_REASON)
    status, body, headers = error.status, error.to_json(), error.headers
    if scope["path"] == "/healthz":
        status, body, headers = 200, json.dumps({"alive": True}).encode(), {}
    elif scope["path"] == "/readyz":
        body = json.dumps({"ready": False, "reason": _REASON}).encode()
    fields = {
        **headers,
        "content-type": "application/json",
        "content-length": f"{len(body)}",
        "connection": "close",
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
