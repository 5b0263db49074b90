"""A kept connection to the engine, and the answer under way on it.

Every failure is an `UpstreamError`. A plain answer wakes its reader once, when it is whole; a relayed stream at its end (ADR 45).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from enclave_server.begun import Rest, Work, begin
from enclave_server.pieces import joined

_STALE_SECONDS = 1.0  # a peer that had closed before we wrote says so at once; later it died of what we asked
_MAX_HEAD = 32 * 1024
_HIGH_WATER = 256 * 1024  # bytes held for a slow reader, before the engine is made to wait


class UpstreamError(Exception):
    """The engine gave no complete answer. Carries a reason of ours, never the engine's words."""


class UnreachableError(UpstreamError):
    """No connection could be made: the engine is not running."""


class TooSlowError(UpstreamError):
    """The engine sent nothing for too long."""


class TooLongError(UpstreamError):
    """The engine's answer is larger than the gateway holds."""


class EngineAnswer(asyncio.Protocol):
    """A connection, and the answer under way on it: usable once its head has arrived, inside its `request` block."""

    def __init__(self, read_seconds: float, forget: Callable[[EngineAnswer], None]) -> None:
        self._read_seconds, self._forget = read_seconds, forget
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Rest | None] | None = None
        self._take: Callable[[bytes], Work | None] | None = None  # while `relay` waits
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._expect()
        self.complete = True  # nothing was asked yet

    def _expect(self) -> None:
        self.status = 0
        self.content_type = b"application/json"
        self._parts: list[bytes] = []
        self._held = self._head_size = 0
        self.complete = self._keep_alive = False
        self._error: UpstreamError | None = None

    @property
    def is_stream(self) -> bool:
        return self.content_type.startswith(b"text/event-stream")

    async def read(self, limit: int) -> bytes:
        """The whole body."""
        if self.complete and len(self._parts) == 1 and self._held <= limit:
            return self._taken()
        whole: bytes | bytearray = b""
        while part := await self.more():
            if len(whole) + len(part) > limit:
                raise TooLongError(f"more than {limit} bytes")
            whole = joined(whole, part)
        return bytes(whole)

    async def more(self) -> bytes:
        """What has arrived of the body since the last call; empty at its end."""
        while not self._parts:
            if self.complete:
                return b""
            await self._wait()
        return self._taken()

    async def relay(self, take: Callable[[bytes], Work | None]) -> None:
        """Give each read of the body to `take` until its end, and do the work that it returns before the next is given.

        The work is done where the socket is read, outside of any task; only when it has to wait is the task woken that waits
        here, and ends it, while the engine waits too."""
        while self._parts or not self.complete:
            if self._parts:
                rest: Work | Rest | None = take(self._taken())
            else:
                self._take = take
                try:
                    rest = await self._wait()
                finally:
                    self._take = None
            if rest is not None:
                await rest

    def _taken(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        if self._held > _HIGH_WATER:
            self._transport.resume_reading()
        self._held = 0
        return data

    # what `_Request` calls

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send a request; returns when the head of a stream, or all of a plain answer, has arrived. Without either, it is closed."""
        self._expect()
        self._heard = self._loop.time()
        try:
            if self._transport.is_closing():
                raise UpstreamError("the connection was lost")
            self._transport.writelines((head, body) if body else (head,))
            while not (self.complete or (self.status and self._worth_waking())):
                await self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def untouched(self) -> bool:
        """It was lost before any byte of an answer, and so soon that the engine cannot have begun one."""
        return not self._head_size and self.silent < _STALE_SECONDS

    @property
    def silent(self) -> float:
        """For how many seconds it has said nothing."""
        return self._loop.time() - self._heard

    @property
    def reusable(self) -> bool:
        return self._keep_alive and self._held <= _HIGH_WATER and not self._transport.is_closing()

    def close(self) -> None:
        self._forget(self)
        self._transport.abort()

    async def _wait(self) -> Rest | None:
        if self._error is not None:
            raise self._error
        if self._timer is None:
            self._timer = self._loop.call_later(self._read_seconds, self._look)
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    def _look(self) -> None:
        """One timer serves many requests: it looks when the last byte came, and sets itself again while somebody waits."""
        self._timer = None
        if self._waiter is None:
            return
        left = self._heard + self._read_seconds - self._loop.time()
        if left <= 0:
            self._fail(TooSlowError("nothing read for too long"))
        else:
            self._timer = self._loop.call_later(left, self._look)

    def _worth_waking(self) -> bool:
        if self.complete or self._error is not None or self._held > _HIGH_WATER:
            return True
        return self._take is None and self.is_stream

    def _relay(self, take: Callable[[bytes], Work | None], waiter: asyncio.Future[Rest | None]) -> None:
        """What `relay` does, in its place; but for the last read, so that it leaves in one write with the receipt."""
        try:
            work = take(self._taken())
            rest = begin(work) if work is not None else None
        except Exception as exc:  # noqa: BLE001 - raised where `relay` waits
            waiter.set_exception(exc)
        else:
            if rest is not None:
                waiter.set_result(rest)

    def _fail(self, error: UpstreamError) -> None:
        if not self.complete and self._error is None:
            self._error = error
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.complete:
            return self.close()  # an answer that nobody asked for
        self._heard = self._loop.time()
        if not self.status:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return self._fail(UpstreamError("not HTTP"))
        if not self.status and self._head_size > _MAX_HEAD:
            return self._fail(UpstreamError("an answer's head without an end"))
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if self._take is not None and self._parts and not self.complete:
                self._relay(self._take, waiter)
            if self._worth_waking() and not waiter.done():
                waiter.set_result(None)
        if self._held > _HIGH_WATER:
            self._transport.pause_reading()
        return None

    def eof_received(self) -> None:
        self.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fail(UpstreamError("the connection was lost"))

    # httptools

    def on_message_begin(self) -> None:
        if self.complete:
            raise UpstreamError("two answers to one request")  # ends the parser; the first one stands

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.content_type = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if not 200 <= status < 600:  # an interim answer, which nobody asked for, or none of HTTP's
            raise UpstreamError("a status that ends nothing")  # ends the parser
        self.status = status

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)
        self._held += len(part)

    def on_message_complete(self) -> None:
        self.complete, self._keep_alive = True, self._parser.should_keep_alive()
