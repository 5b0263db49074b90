"""The way to the engine: kept connections over a Unix socket or the loopback, and nothing that this gateway does not need.

Nothing of the client's request but its body and its route is sent on. Every failure is an `UpstreamError` (ADR 18 says why
this is our own).
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Self

from enclave_server.engine.address import Address
from enclave_server.engine.answer import EngineAnswer, UnreachableError, UpstreamError

_CONNECT_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = (
    3.0  # less than vLLM's own 5, so that it hardly ever closes a connection just taken into use
)


class Upstream:
    """A pool of connections to the engine. Use as an async context."""

    def __init__(self, address: Address, *, read_seconds: float) -> None:
        self._address, self._read_seconds = address, read_seconds
        self._idle: dict[EngineAnswer, None] = {}  # in the order in which they became idle

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            self._idle.popitem()[0].close()
        await asyncio.sleep(0)  # in which the loop closes them

    def request(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> _Request:
        """`async with` it. Leaving the block before the answer's end closes the connection, which tells vLLM to stop."""
        return _Request(self, method, path, body, content_type)

    async def connect(self) -> EngineAnswer:
        loop, new = asyncio.get_running_loop(), partial(EngineAnswer, self._read_seconds, self._forget)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if isinstance(self._address, Path):
                    path = str(self._address)
                    _, connection = await loop.create_unix_connection(new, path)
                else:
                    host, port = self._address
                    _, connection = await loop.create_connection(new, host, port)
        except OSError:  # TimeoutError too
            raise UnreachableError("no connection") from None
        return connection

    def kept(self) -> EngineAnswer | None:
        """The connection that was in use last, unless the engine may be about to close it."""
        if not self._idle:
            return None
        connection, _ = self._idle.popitem()
        if connection.silent < _KEEP_ALIVE_SECONDS:
            return connection
        connection.close()  # and the others are hardly younger
        return None

    def keep(self, connection: EngineAnswer) -> None:
        self._idle[connection] = None

    def _forget(self, connection: EngineAnswer) -> None:
        self._idle.pop(connection, None)


class _Request:
    """One request and its answer."""

    __slots__ = ("_body", "_connection", "_head", "_pool")

    def __init__(self, pool: Upstream, method: str, path: str, body: bytes, content_type: str) -> None:
        self._pool, self._body = pool, body
        fields = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._head = f"{method} {path} HTTP/1.1\r\nHost: engine\r\n{fields}\r\n".encode("ascii")

    async def __aenter__(self) -> EngineAnswer:
        kept = self._pool.kept()
        self._connection = kept or await self._pool.connect()
        try:
            await self._connection.ask(self._head, self._body)
        except UpstreamError:
            if kept is None or not kept.untouched:
                raise
            self._connection = await self._pool.connect()
            await self._connection.ask(self._head, self._body)
        self._body = b""  # it may be large, and is not asked again
        return self._connection

    async def __aexit__(self, *_: object) -> None:
        if self._connection.reusable:
            self._pool.keep(self._connection)
        else:
            self._connection.close()
