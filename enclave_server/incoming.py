"""A request's body on its way in: bounded in bytes and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from enclave_server.errors import ApiError, too_large
from enclave_server.exchange import Receive


class ClientGoneError(Exception):
    """Nobody is left to answer."""


async def read_body(
    receive: Receive,
    *,
    seconds: float,
    limit: int,
    seal: int = 0,
    seen: Callable[[bytes], None] = lambda _: None,
) -> bytes:
    """All of it: `limit` bytes, and what a seal around them adds. `seen` is told of each part, also of one too many."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part: bytes = message.get("body", b"")
                seen(part)
                size += len(part)
                if size > limit + seal:
                    raise too_large(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise ApiError(408, "body_timeout", "The request's body did not arrive in time.") from None
