"""The two worlds an HTTP client may live in, blocking and async, for either library.

The transport's logic is written once, as coroutines. In the async world they are awaited. In the blocking one every
operation below has finished before it returns, so a coroutine runs from start to end in one step (`run`): the same
code, no event loop, no threads. `http` is the module `httpx` or `httpx2`; both have the same names.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import ModuleType, TracebackType
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from attestation.errors import VerificationError
from attestation.sealed import AnswerOpener
from attestation.sealed_head import ResponseHead
from client_sdk.receipts import StreamCheck

Http = Any  # requests, responses and transports of either library
Clock = Callable[[], datetime]
Done = Callable[[], Coroutine[Any, Any, None]]  # tells that an answer was read or given up; called once
Trace = Callable[[str, Any], Any]  # httpcore's: told of each step of a request; may raise
T = TypeVar("T")

_SENDING = (
    ".send_request_headers.started"  # a connection is there, and nothing of the request was written to it
)


class TooLongError(Exception):
    """More bytes than the caller allowed."""


class World(Protocol):
    """What the transport needs of its world."""

    http: ModuleType

    def lock(self) -> AbstractAsyncContextManager[Any]: ...
    async def apart(self, work: Callable[[], T]) -> T: ...
    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http: ...
    def when_sent(self, check: Callable[[], None], trace: Trace | None) -> Trace: ...
    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http: ...
    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]: ...
    async def body(self, request: Http) -> bytes: ...
    async def send(self, transport: Http, request: Http) -> Http: ...
    async def read(self, stream: Http, limit: int | None) -> bytes: ...
    async def close(self, thing: Http) -> None: ...


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, because everything it awaits is blocking."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a blocking operation was suspended")


class Blocking:
    """The world of `httpx.Client`."""

    def __init__(self, http: ModuleType) -> None:
        self.http = http
        self._stream = type("VerifiedStream", (_BlockingStream, http.SyncByteStream), {})
        self._unsealed = type("UnsealedStream", (_BlockingUnsealed, http.SyncByteStream), {})

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return _ThreadLock()

    async def apart(self, work: Callable[[], T]) -> T:
        return work()

    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http:
        return self.http.HTTPTransport(verify=context, **options)

    def when_sent(self, check: Callable[[], None], trace: Trace | None) -> Trace:
        def step(name: str, info: Any) -> None:
            if name.endswith(_SENDING):
                check()
            if trace is not None:
                trace(name, info)

        return step

    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http:
        return self._stream(stream, check, clock, done, broken(self.http))

    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]:
        unsealed = self._unsealed(stream, opener)
        return unsealed.begin(), unsealed

    async def body(self, request: Http) -> bytes:
        body: bytes = request.read()
        return body

    async def send(self, transport: Http, request: Http) -> Http:
        return transport.handle_request(request)

    async def read(self, stream: Http, limit: int | None) -> bytes:
        body = bytearray()
        for part in stream:
            body += part
            _limit(body, limit)
        return bytes(body)

    async def close(self, thing: Http) -> None:
        thing.close()


class Async:
    """The world of `httpx.AsyncClient`, under asyncio or trio."""

    def __init__(self, http: ModuleType) -> None:
        self.http = http
        self._stream = type("AsyncVerifiedStream", (_AsyncStream, http.AsyncByteStream), {})
        self._unsealed = type("AsyncUnsealedStream", (_AsyncUnsealed, http.AsyncByteStream), {})

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return anyio.Lock()

    async def apart(self, work: Callable[[], T]) -> T:
        # in a thread of its own: those of the caller's program may all be waiting for this very answer
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http:
        return self.http.AsyncHTTPTransport(verify=context, **options)

    def when_sent(self, check: Callable[[], None], trace: Trace | None) -> Trace:
        async def step(name: str, info: Any) -> None:
            if name.endswith(_SENDING):
                check()
            if trace is not None:
                await trace(name, info)

        return step

    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http:
        return self._stream(stream, check, clock, done, broken(self.http))

    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]:
        unsealed = self._unsealed(stream, opener)
        return await unsealed.begin(), unsealed

    async def body(self, request: Http) -> bytes:
        body: bytes = await request.aread()
        return body

    async def send(self, transport: Http, request: Http) -> Http:
        return await transport.handle_async_request(request)

    async def read(self, stream: Http, limit: int | None) -> bytes:
        body = bytearray()
        async for part in stream:
            body += part
            _limit(body, limit)
        return bytes(body)

    async def close(self, thing: Http) -> None:
        await thing.aclose()


def broken(http: ModuleType) -> tuple[type[Exception], ...]:
    """The ways in which a connection breaks. Time-outs are not among them."""
    # httpx2 lets these two of AnyIO's and OpenSSL's through as they are
    return (http.NetworkError, http.RemoteProtocolError, http.ProxyError, OSError, anyio.EndOfStream)


def _limit(body: bytearray, limit: int | None) -> None:
    if limit is not None and len(body) > limit:
        raise TooLongError(f"more than {limit} bytes")


class _ThreadLock:
    """`threading.Lock` for a coroutine that `run` drives: acquiring blocks the thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


async def _nothing() -> None:
    """For a stream that is closed a second time."""


class _Stream:
    """The body of a streamed answer: verified events, or an error. Closing it gives its connection back."""

    def __init__(
        self,
        stream: Http,
        check: StreamCheck,
        clock: Clock,
        done: Done,
        broken: tuple[type[Exception], ...],
    ) -> None:
        self._stream, self._check, self._clock, self._done, self._broken = stream, check, clock, done, broken

    def _finished(self) -> Done:
        done, self._done = self._done, _nothing
        return done

    def _cut(self, exc: Exception) -> VerificationError:
        return self._check.truncated(f"the connection broke ({type(exc).__name__}: {exc})")


class _BlockingStream(_Stream):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._stream:
                if self._check.passes(data):
                    yield data
                    continue
                for events in self._check.feed(data, self._clock()):
                    yield events
        except self._broken as exc:
            raise self._cut(exc) from exc
        if events := self._check.finish(self._clock()):
            yield events
        self._check.conclude()

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            run(self._finished()())


class _AsyncStream(_Stream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._stream:
                if self._check.passes(data):
                    yield data
                    continue
                for events in self._check.feed(data, self._clock()):
                    yield events
        except self._broken as exc:
            raise self._cut(exc) from exc
        if events := self._check.finish(self._clock()):
            yield events
        self._check.conclude()

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            await self._finished()()


class _Unsealed:
    """The body inside a sealed answer. `begin` reads until the head is there, which is one chunk."""

    def __init__(self, stream: Http, opener: AnswerOpener) -> None:
        self._stream, self._opener = stream, opener
        self._begun = b""

    def _taken(self) -> bytes:
        """Once: openai 3.x reads what is left of a stream by iterating over it again."""
        begun, self._begun = self._begun, b""
        return begun


class _BlockingUnsealed(_Unsealed):
    def begin(self) -> ResponseHead:
        self._reads = iter(self._stream)
        for data in self._reads:
            self._begun += self._opener.feed(data)
            if self._opener.head is not None:
                return self._opener.head
        raise self._opener.truncated()

    def __iter__(self) -> Iterator[bytes]:
        if begun := self._taken():
            yield begun
        for data in self._reads:
            if opened := self._opener.feed(data):
                yield opened
        self._opener.end()

    def close(self) -> None:
        self._stream.close()


class _AsyncUnsealed(_Unsealed):
    async def begin(self) -> ResponseHead:
        self._reads = aiter(self._stream)
        async for data in self._reads:
            self._begun += self._opener.feed(data)
            if self._opener.head is not None:
                return self._opener.head
        raise self._opener.truncated()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if begun := self._taken():
            yield begun
        async for data in self._reads:
            if opened := self._opener.feed(data):
                yield opened
        self._opener.end()

    async def aclose(self) -> None:
        try:
            await self._reads.aclose()
        finally:
            await self._stream.aclose()
