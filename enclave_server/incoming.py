"""A request's body on its way in: bounded in bytes. Whoever reads it bounds the time."""

from __future__ import annotations

from collections.abc import Callable

from enclave_server.asgi import Receive
from enclave_server.errors import too_large
from enclave_server.pieces import joined
from enclave_server.shortcuts import arrived_body
from enclave_server.watch import ClientGoneError


def whole_body(receive: Receive, *, limit: int, seen: Callable[[bytes], None]) -> bytes | None:
    """What `read_body` gives, if it is here already: else None, and nothing was done. To be called once, before `read_body`."""
    body = arrived_body(receive)
    if body is not None:
        seen(body)
        if len(body) > limit:
            raise too_large(limit)
    return body


async def read_body(
    receive: Receive, *, limit: int, seal: int = 0, seen: Callable[[bytes], None] = lambda _: None
) -> bytes:
    """All of it: `limit` bytes, and what a seal around them adds. `seen` is told of each part, also of one too many."""
    whole: bytes | bytearray = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part: bytes = message.get("body", b"")
        seen(part)
        if len(whole) + len(part) > limit + seal:
            raise too_large(limit)
        whole = joined(whole, part)
        if not message.get("more_body", False):
            return bytes(whole)
