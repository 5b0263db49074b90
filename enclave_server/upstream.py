"""The way to the engine: one narrow interface over a Unix socket, so that the HTTP client behind it can be replaced.

Nothing of the client's request but its body and its route is sent on. Every failure is an `UpstreamError`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp

_CONNECT_SECONDS = 5.0
_KEEP_ALIVE_SECONDS = 3.0  # less than vLLM's own 5, so that it never closes a connection just taken into use


class UpstreamError(Exception):
    """The engine gave no complete answer. Carries a reason of ours, never the engine's words."""


class UnreachableError(UpstreamError):
    """No connection could be made: the engine is not running."""


class TooSlowError(UpstreamError):
    """The engine sent nothing for too long."""


class TooLongError(UpstreamError):
    """The engine's answer is larger than the gateway holds."""


class EngineAnswer:
    """An answer whose head has arrived. Ends with the `request` block that gave it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith("text/event-stream")

    async def read(self, limit: int) -> bytes:
        """The whole body."""
        parts, size = [], 0
        async for part in self.chunks():
            size += len(part)
            if size > limit:
                raise TooLongError(f"more than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives: what one read of the socket brought."""
        with _translated():
            while chunk := await self._response.content.readany():
                yield chunk


class Upstream:
    """A pool of connections to the engine behind `socket`. Use as an async context."""

    def __init__(self, socket: Path, *, read_seconds: float) -> None:
        self._socket = socket
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=read_seconds
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            "http://engine",
            connector=aiohttp.UnixConnector(
                str(self._socket), limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def request(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[EngineAnswer]:
        """Send a request. Leaving the block before the answer's end closes the connection, which tells vLLM to stop."""
        if self._session is None:
            raise UnreachableError("not open")
        headers = {"Content-Type": "application/json"} if body else {}
        with _translated():
            response = await self._session.request(
                method, path, data=body or None, headers=headers, allow_redirects=False
            )
        try:
            yield EngineAnswer(response)
        finally:
            response.close() if not response.content.is_eof() else response.release()


class _translated:  # noqa: N801 - reads as the context manager it is
    """aiohttp's errors become ours; their texts stay behind."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        match error:
            case aiohttp.ClientConnectorError():
                raise UnreachableError("no connection") from None
            case TimeoutError():
                raise TooSlowError("nothing read for too long") from None
            case aiohttp.ClientError() | OSError():
                raise UpstreamError(type(error).__name__) from None
