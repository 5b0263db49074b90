"""GET /.well-known/attestation: evidence for a caller's nonce, or a document that is renewed in the background.

Making evidence costs hardware time, so fresh documents go through a token bucket; the renewed one is free.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from attestation.binding import NONCE_BYTES, gpu_nonce, report_data
from attestation.evidence import Evidence, dump_evidence
from enclave_server.errors import ApiError
from enclave_server.log import failure, log
from enclave_server.settings import Settings
from enclave_server.tee import Tee

_RETRY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Document:
    """An evidence document, and the nonce it was made for."""

    nonce: bytes
    body: bytes


class TokenBucket:
    """`rate` tokens a second, at most `burst` saved up."""

    def __init__(self, rate: float, burst: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = float(burst), clock()

    def take(self) -> float:
        """0 when a token was taken, else how many seconds to wait for one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


def make_attester(settings: Settings, statement: bytes, tee: Tee) -> Attester:
    """One for each worker. Together they make evidence at the rate of the settings, whichever a caller comes to."""
    share = settings.workers
    bucket = TokenBucket(settings.evidence_per_second / share, max(1, settings.evidence_burst // share))
    return Attester(statement, tee, bucket, renew_seconds=settings.evidence_renew_seconds)


class Attester:
    """Makes evidence documents about one statement."""

    def __init__(self, statement: bytes, tee: Tee, bucket: TokenBucket, *, renew_seconds: float) -> None:
        self._statement, self._tee, self._bucket, self._renew_seconds = statement, tee, bucket, renew_seconds
        self._current: Document | None = None
        self._made_at = float("nan")

    @property
    def ready(self) -> bool:
        return self._current is not None

    @property
    def age(self) -> float:
        """Seconds since the renewed document was made; not a number when there is none."""
        return time.monotonic() - self._made_at

    def current(self) -> Document:
        """The renewed document."""
        if self._current is None:
            raise ApiError(
                503, "evidence_missing", "No evidence was made yet. Try again soon.", retry_after=5
            )
        return self._current

    async def fresh(self, nonce: bytes) -> Document:
        """A document for this nonce, when the rate limit allows one."""
        if wait := self._bucket.take():
            raise ApiError(
                429,
                "evidence_rate_limit",
                "Too many requests for fresh evidence.",
                retry_after=max(1, ceil(wait)),
            )
        try:
            return await self._make(nonce)
        except Exception as exc:  # noqa: BLE001 - a device or file failed; what it said is for the log's reader alone
            log.error("evidence failed", **failure(exc))
            raise ApiError(503, "evidence_failed", "Evidence could not be made.", retry_after=5) from None

    async def renew(self) -> None:
        """Keep the current document young, for as long as the gateway runs."""
        while True:
            try:
                self._current = await self._make(secrets.token_bytes(NONCE_BYTES))
                self._made_at = time.monotonic()
                delay = self._renew_seconds
            except Exception as exc:  # noqa: BLE001 - the old document stays in use; the next attempt is near
                log.error("evidence failed", **failure(exc))
                delay = _RETRY_SECONDS
            await asyncio.sleep(delay)

    async def _make(self, nonce: bytes) -> Document:
        return Document(nonce, await asyncio.to_thread(self._document, nonce))

    def _document(self, nonce: bytes) -> bytes:
        gpu = self._tee.gpus(gpu_nonce(nonce, self._statement))
        return dump_evidence(
            Evidence(
                statement=self._statement,
                cpu=self._tee.evidence(report_data(nonce, self._statement, gpu)),
                gpu=gpu,
                collateral=self._tee.collateral(),
            )
        )
