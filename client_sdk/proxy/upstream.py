"""One enclave behind the proxy: the way to it, whether a request was sent, and what is known of it.

The way is an attested transport, which verifies before it sends. A machine that slept, or whose clock was set, takes a
new way: its old connections may be dead without knowing. Verdicts end by the calendar, however long the sleep was.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx

from attestation.errors import AttestationError
from client_sdk._bodies import Clock
from client_sdk._worlds import broken
from client_sdk.proxy.errors import NoAnswerError
from client_sdk.proxy.http import Headers
from client_sdk.receipts import Attestation

MakeTransport = Callable[[], httpx.AsyncBaseTransport]
TIMEOUT = {"connect": 10.0, "read": 600.0, "write": 60.0, "pool": 60.0}  # seconds
REST_SECONDS = 10.0  # how long an enclave that failed comes after all others
SLEPT = timedelta(seconds=30)  # between the two clocks: more than any correction of a running clock
#: Refusals, and what can go wrong on the way without being one.
NO_ANSWER: tuple[type[Exception], ...] = (AttestationError, httpx.TransportError, *broken(httpx))


class _Way:
    """One transport, closed when it was replaced and its last answer has been read."""

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport, self.users, self.retired = transport, 0, False

    async def leave(self) -> None:
        self.users -= 1
        if self.retired and not self.users:
            await self.transport.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer with its proof. A stream's body verifies itself while it is read."""

    origin: str
    status: int
    headers: Headers
    stream: Any
    attestation: Attestation
    leave: Callable[[], Any]

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The body's verified bytes. Raises `NoAnswerError` when it turns out to be wrong or breaks."""
        try:
            async with aclosing(aiter(self.stream)) as parts:
                async for part in parts:
                    yield part
        except NO_ANSWER as exc:
            raise NoAnswerError(exc, self.origin, sent=True) from exc

    async def close(self) -> None:
        """Needed, once, whether the body was read or not."""
        try:
            await self.stream.aclose()
        finally:
            await self.leave()


class Upstream:
    """One enclave."""

    def __init__(
        self, origin: str, make: MakeTransport, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.origin = origin
        self.url = httpx.URL(origin)
        self.failure: NoAnswerError | None = None  # the last attempt's, when it failed
        self.failed_at: datetime | None = None
        self._make, self._clock, self._monotonic = make, clock, monotonic
        self._ahead = self._clocks()
        self._rest_until = -1.0
        self._way = _Way(make())

    @property
    def resting(self) -> bool:
        """It failed a moment ago: others come first."""
        return self._monotonic() < self._rest_until

    async def send(self, method: str, target: str, headers: Headers, body: bytes) -> Reply:
        """One request to this enclave, once it is verified. Raises `NoAnswerError`."""
        way = await self._awake()
        sent = False

        async def trace(event: str, _: object) -> None:
            nonlocal sent
            sent = sent or event.endswith("send_request_headers.started")

        way.users += 1
        try:
            request = httpx.Request(
                method,
                self.url.copy_with(raw_path=target.encode("ascii")),
                headers=list(headers),
                content=body or (b"" if method in {"POST", "PUT", "PATCH"} else None),
                extensions={"timeout": TIMEOUT, "trace": trace},
            )
            answer = await way.transport.handle_async_request(request)
        except NO_ANSWER as exc:
            await way.leave()
            failure = NoAnswerError(exc, self.origin, sent=sent)
            self.failed(failure)
            raise failure from exc
        except BaseException:
            await way.leave()
            raise
        attestation: Attestation = answer.extensions["attestation"]
        self.failure = None
        self._rest_until = -1.0
        return Reply(
            origin=self.origin,
            status=answer.status_code,
            headers=answer.headers.raw,
            stream=answer.stream,
            attestation=attestation,
            leave=way.leave,
        )

    def failed(self, failure: NoAnswerError) -> None:
        """It gave no answer, or a stream that turned out to be wrong after it had begun."""
        self.failure, self.failed_at = failure, self._clock()
        self.rest()

    def rest(self) -> None:
        """Let others come first for a while."""
        self._rest_until = self._monotonic() + REST_SECONDS

    async def close(self) -> None:
        """Close every connection."""
        await self._way.transport.aclose()

    def _clocks(self) -> timedelta:
        """How far the calendar is ahead of the clock that stands still while the machine sleeps."""
        return self._clock() - datetime.fromtimestamp(self._monotonic(), self._clock().tzinfo)

    async def _awake(self) -> _Way:
        ahead = self._clocks()
        if abs(ahead - self._ahead) > SLEPT:
            old, self._way = self._way, _Way(self._make())
            old.retired, self._ahead = True, ahead
            if not old.users:
                await old.transport.aclose()
        return self._way
