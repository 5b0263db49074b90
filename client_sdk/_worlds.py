"""The two worlds an HTTP client may live in, blocking and async, for either library.

The transport's logic is written once, as coroutines. In the async world they are awaited. In the blocking one every
operation below has finished before it returns, so a coroutine runs from start to end in one step (`run`): the same
code, no event loop, no threads. `http` is the module `httpx` or `httpx2`; both have the same names.

`send` calls `check` when there is a connection and nothing of the request was written to it, by httpcore's `trace`; what it
raises ends the request.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from types import ModuleType, TracebackType
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread

from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import ResponseHead
from client_sdk._bodies import (
    AsyncStream,
    AsyncUnsealed,
    BlockingStream,
    BlockingUnsealed,
    Clock,
    Done,
    Http,
)
from client_sdk.streams import StreamCheck

T = TypeVar("T")


class TooLongError(Exception):
    """More bytes than the caller allowed."""


class World(Protocol):
    """What the transport needs of its world."""

    http: ModuleType

    def place(self) -> asyncio.AbstractEventLoop | None: ...
    def lock(self) -> AbstractAsyncContextManager[Any]: ...
    async def apart(self, work: Callable[[], T]) -> T: ...
    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http: ...
    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http: ...
    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]: ...
    async def body(self, request: Http) -> bytes: ...
    async def send(self, transport: Http, request: Http, check: Callable[[], None]) -> Http: ...
    async def read(self, stream: Http, limit: int | None) -> bytes: ...
    async def close(self, thing: Http) -> None: ...


class Blocking:
    """The world of `httpx.Client`."""

    def __init__(self, http: ModuleType) -> None:
        self.http = http
        self._stream = type("VerifiedStream", (BlockingStream, http.SyncByteStream), {})
        self._unsealed = type("UnsealedStream", (BlockingUnsealed, http.SyncByteStream), {})

    def place(self) -> None:
        """Where connections can be used: in every thread."""

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return _ThreadLock()

    async def apart(self, work: Callable[[], T]) -> T:
        return work()

    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http:
        return self.http.HTTPTransport(verify=context, **options)

    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http:
        return self._stream(stream, check, clock, done, broken(self.http))

    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]:
        unsealed = self._unsealed(stream, opener)
        return unsealed.begin(), unsealed

    async def body(self, request: Http) -> bytes:
        body: bytes = request.read()
        return body

    async def send(self, transport: Http, request: Http, check: Callable[[], None]) -> Http:
        def step(name: str, info: Any) -> None:
            if _leaves(name, info):
                check()
                if trace is None:
                    request.extensions.pop("trace")  # the nine steps that follow are nobody's
            if trace is not None:
                trace(name, info)

        trace, request.extensions["trace"] = request.extensions.get("trace"), step
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
        self._stream = type("AsyncVerifiedStream", (AsyncStream, http.AsyncByteStream), {})
        self._unsealed = type("AsyncUnsealedStream", (AsyncUnsealed, http.AsyncByteStream), {})

    def place(self) -> asyncio.AbstractEventLoop | None:
        """Where connections can be used: in this event loop; None for trio's."""
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None

    def lock(self) -> AbstractAsyncContextManager[Any]:
        return anyio.Lock()

    async def apart(self, work: Callable[[], T]) -> T:
        # in a thread of its own: those of the caller's program may all be waiting for this very answer
        limiter = anyio.CapacityLimiter(1)
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    def connect(self, context: ssl.SSLContext, options: Mapping[str, Any]) -> Http:
        return self.http.AsyncHTTPTransport(verify=context, **options)

    def stream(self, stream: Http, check: StreamCheck, clock: Clock, done: Done) -> Http:
        return self._stream(stream, check, clock, done, broken(self.http))

    async def unseal(self, stream: Http, opener: AnswerOpener) -> tuple[ResponseHead, Http]:
        unsealed = self._unsealed(stream, opener)
        return await unsealed.begin(), unsealed

    async def body(self, request: Http) -> bytes:
        body: bytes = await request.aread()
        return body

    async def send(self, transport: Http, request: Http, check: Callable[[], None]) -> Http:
        async def step(name: str, info: Any) -> None:
            if _leaves(name, info):
                check()
                if trace is None:
                    request.extensions.pop("trace")
            if trace is not None:
                await trace(name, info)

        trace, request.extensions["trace"] = request.extensions.get("trace"), step
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


def _leaves(step: str, info: Any) -> bool:
    """Whether, by httpcore's name of the step, the request is about to leave; what a tunnel is asked for with is not it."""
    return step.endswith(".send_request_headers.started") and info["request"].method != b"CONNECT"


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
