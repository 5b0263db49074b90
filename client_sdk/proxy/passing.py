"""A plain OpenAI endpoint whose every answer was verified: requests go to attested enclaves, and to nothing else.

What it passes on is what the enclave signed, byte for byte; what it cannot prove ends in an error that names the check.
A request goes to one enclave, and to the next only when not a byte of it was sent, or when asking twice does no harm.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

import anyio.to_thread

from attestation.bundle import dump_bundle
from client_sdk._bodies import Clock
from client_sdk.files import write_private
from client_sdk.proxy.errors import NoAnswerError, api_error
from client_sdk.proxy.guard import Guard
from client_sdk.proxy.http import Answer, BrokenStreamError, Head, Headers, date_header
from client_sdk.proxy.upstream import Reply, Upstream
from client_sdk.receipts import Attestation
from client_sdk.streams import StreamCheck, Verify

#: RFC 9110 §7.6.1; and what a stranger's page or another server left with a browser, which is no enclave's business.
_OF_THE_CONNECTION = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "
    b"transfer-encoding upgrade content-length host expect cookie origin referer".split()
)
_KEYS = frozenset({b"authorization", b"x-api-key"})
_SAFE_TWICE = frozenset({"GET", "HEAD"})
SHOWN_FAILURES = 20
#: What callers are told of a stream whose events go out before its receipt is there.
STREAMS = {Verify.AS_YOU_READ: "as-read", Verify.BEFORE_USE: "before-use"}


@dataclass(slots=True)
class Counts:
    """What became of the requests; nothing of what they were about."""

    requests: int = 0
    verified: int = 0
    streams: int = 0
    refused: int = 0
    unavailable: int = 0
    abandoned: int = 0
    under_way: int = 0
    saved: int = 0
    not_saved: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """One failure, for the status page."""

    at: datetime
    enclave: str
    code: str
    words: str


class Proxy:
    """Answers what `http.Server` read."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        guard: Guard,
        *,
        clock: Clock,
        verify: Verify = Verify.AS_YOU_READ,
        api_key: str | None = None,
        save: Path | None = None,
    ) -> None:
        self.upstreams, self.counts = tuple(upstreams), Counts()
        self.failures: deque[Noted] = deque(maxlen=SHOWN_FAILURES)
        self.verify = verify
        self._guard, self._clock, self._save_to = guard, clock, save
        self._key = None if api_key is None else (b"authorization", b"Bearer " + api_key.encode("ascii"))
        self._current = 0

    async def answer(self, head: Head, body: bytes) -> Answer:
        """The verified answer to one request, or an error that says why there is none."""
        if (preflight := self._guard.preflight(head)) is not None:
            return preflight
        if not head.target.startswith("/v1/"):
            return api_error(
                404, "not_found", "there is only /v1/… here: use a base URL that ends in /v1", date_header()
            )
        self.counts.requests += 1
        self.counts.under_way += 1
        kept = False
        try:
            reply = await self._ask(head, body)
            answer = await self._relay(reply, self._guard.cors(head))
            kept = not isinstance(answer.body, bytes)  # a stream is under way until it ends
            return answer
        except NoAnswerError as failure:
            answer = failure.to_answer()
            return replace(answer, headers=[*answer.headers, *self._guard.cors(head), date_header()])
        except BaseException:
            self.counts.abandoned += 1
            raise
        finally:
            self.counts.under_way -= not kept

    async def _ask(self, head: Head, body: bytes) -> Reply:
        """The first answer among the enclaves, the one that answered last asked first."""
        headers, failures = self._headers(head), list[NoAnswerError]()
        *others, last = self._order()
        for upstream in (*others, last):
            try:
                reply = await upstream.send(head.method, head.target, headers, body)
            except NoAnswerError as failure:
                self._note(failure)
                failures.append(failure)
                if failure.sent and (failure.refused or head.method not in _SAFE_TWICE):
                    break
                continue
            if reply.status == 503 and upstream is not last:  # it says that it did not do it, so another may
                upstream.rest()
                await reply.close()
                continue
            self._current = self.upstreams.index(upstream)
            return reply
        raise next((f for f in failures if f.refused), failures[-1])

    def _order(self) -> list[Upstream]:
        count = len(self.upstreams)
        turned = [self.upstreams[(self._current + i) % count] for i in range(count)]
        return sorted(turned, key=lambda upstream: upstream.resting)

    def _headers(self, head: Head) -> Headers:
        """The caller's headers but those of its connection, and with the proxy's own key where it has one."""
        drop = _OF_THE_CONNECTION | _named(head.all(b"connection")) | (_KEYS if self._key else frozenset())
        kept = [pair for pair in head.headers if pair[0] not in drop and not pair[0].startswith(b"sec-")]
        return [*kept, self._key] if self._key else kept

    async def _relay(self, reply: Reply, cors: Headers) -> Answer:
        attestation = reply.attestation
        if isinstance(attestation.check, StreamCheck):
            self.counts.streams += 1
            return Answer(
                status=reply.status,
                headers=[*_passed(reply.headers), *_proof(reply, STREAMS[self.verify]), *cors],
                body=_Stream(self, reply),
                trailers=lambda: _receipt(attestation),
            )
        try:
            body = b"".join([part async for part in reply.body()])
        finally:
            await reply.close()
        self.counts.verified += 1
        await self._save(attestation)
        headers = [*_passed(reply.headers), *_proof(reply, "verified"), *_receipt(attestation), *cors]
        return Answer(status=reply.status, headers=headers, body=body)

    async def events(self, reply: Reply) -> AsyncGenerator[bytes, None]:
        """Each piece as it comes. What turns out to be wrong ends in an error event, and never cleanly."""
        try:
            async with aclosing(reply.body()) as body:
                async for part in body:
                    yield part
        except NoAnswerError as failure:
            self._note(failure)
            next(u for u in self.upstreams if u.origin == reply.origin).failed(failure)
            yield failure.to_event()
            raise BrokenStreamError(failure.to_answer()) from failure
        self.counts.verified += 1
        await self._save(reply.attestation)

    def _note(self, failure: NoAnswerError) -> None:
        if failure.refused:
            self.counts.refused += 1
        else:
            self.counts.unavailable += 1
        noted = Noted(at=self._clock(), enclave=failure.origin, code=failure.code, words=failure.words)
        self.failures.append(noted)

    async def _save(self, attestation: Attestation) -> None:
        """Keep evidence, receipt and bytes, where that was asked for. A full disk stops no answer, and is counted."""
        if self._save_to is None or attestation.receipt is None:
            return
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in attestation.receipt.id)
        try:
            await anyio.to_thread.run_sync(_write, self._save_to / f"{name}.json", attestation)
            self.counts.saved += 1
        except OSError:
            self.counts.not_saved += 1


class _Stream:
    """A streamed body, read once or not at all; closing it ends the enclave's work on it."""

    def __init__(self, proxy: Proxy, reply: Reply) -> None:
        self._counts, self._reply, self._events, self._ended = proxy.counts, reply, proxy.events(reply), False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._events)
        except (StopAsyncIteration, BrokenStreamError):
            self._ended = True
            raise

    async def aclose(self) -> None:
        """Needed, once, whether the body was read or not."""
        self._counts.abandoned += not self._ended
        self._counts.under_way -= 1
        try:
            await self._events.aclose()
        finally:
            await self._reply.close()


def _write(file: Path, attestation: Attestation) -> None:
    write_private(file, dump_bundle(attestation.bundle()), over=False)


def _named(values: list[bytes]) -> frozenset[bytes]:
    """The headers that belong to the connection because `Connection` says so."""
    return frozenset(name.strip().lower() for value in values for name in value.split(b","))


def _passed(headers: Headers) -> list[tuple[bytes, bytes]]:
    named = _named([value for name, value in headers if name.lower() == b"connection"])
    return [
        (name, value)
        for name, value in headers
        if (low := name.lower()) not in _OF_THE_CONNECTION | named and not low.startswith(b"x-attested")
    ]


def _proof(reply: Reply, said: str) -> Headers:
    verdict = reply.attestation.verdict
    return (
        (b"x-attested", said.encode()),
        (b"x-attested-enclave", reply.origin.encode()),
        (b"x-attested-statement", verdict.statement_digest.hex().encode()),
        (b"x-attested-simulated", b"true" if verdict.simulated else b"false"),
    )


def _receipt(attestation: Attestation) -> Headers:
    receipt = attestation.receipt
    return () if receipt is None else ((b"x-attested-receipt", receipt.id.encode()),)
