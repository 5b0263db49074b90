"""GET /.well-known/attestation: evidence for a caller's nonce, or a document that is renewed in the background.

Making evidence costs hardware time, so fresh documents go through a token bucket; the renewed one is free.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

from attestation.binding import NONCE_BYTES, gpu_nonce, report_data
from attestation.evidence import Evidence, dump_evidence
from enclave_server.errors import ApiError, identity_expired
from enclave_server.evidence.collateral import CollateralState
from enclave_server.evidence.tee import Tee
from enclave_server.identities import Identities
from enclave_server.identity import Identity
from enclave_server.log import failure, log
from enclave_server.settings import Settings

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


def make_attester(settings: Settings, identities: Identities, tee: Tee) -> Attester:
    """One for each worker. Together they make evidence at the rate of the settings, whichever a caller comes to."""
    share = settings.workers
    bucket = TokenBucket(settings.evidence_per_second / share, max(1, settings.evidence_burst // share))
    return Attester(
        identities,
        tee,
        bucket,
        renew_seconds=settings.evidence_renew_seconds,
        patience_seconds=settings.evidence_seconds,
    )


class Attester:
    """Makes evidence documents about the current identity, and has one ready for its successor before that takes over."""

    def __init__(
        self,
        identities: Identities,
        tee: Tee,
        bucket: TokenBucket,
        *,
        renew_seconds: float,
        patience_seconds: float,
    ) -> None:
        self._identities, self._tee, self._bucket = identities, tee, bucket
        self._renew_seconds, self._patience_seconds = renew_seconds, patience_seconds
        # a thread of its own: hardware that hangs holds up nothing but evidence
        self._hardware = ThreadPoolExecutor(max_workers=1, thread_name_prefix="evidence")
        self._documents: dict[bytes, Document] = {}  # by the digest of the statement
        self._made_at = float("nan")
        self._wake = asyncio.Event()

    @property
    def ready(self) -> bool:
        return self._identities.current.statement_digest in self._documents

    @property
    def unready(self) -> str | None:
        """Why a client would refuse what it got here, by name; None when it would not."""
        if not self.ready:
            return "evidence_missing"
        if self.age > max(3 * self._renew_seconds, self._renew_seconds + 60):
            return "evidence_stale"
        return self.collateral.unready

    @property
    def collateral(self) -> CollateralState:
        """How it stands with what vendors publish beside the evidence."""
        return self._tee.state

    @property
    def age(self) -> float:
        """Seconds since the renewed document was made; not a number when there is none."""
        return time.monotonic() - self._made_at

    def current(self) -> Document:
        """The renewed document."""
        document = self._documents.get(self._identity().statement_digest)
        if document is None:
            raise ApiError(
                503, "evidence_missing", "No evidence was made yet. Try again soon.", retry_after=5
            )
        return document

    async def fresh(self, nonce: bytes) -> Document:
        """A document for this nonce, when the rate limit allows one."""
        identity = self._identity()
        if wait := self._bucket.take():
            raise ApiError(
                429,
                "evidence_rate_limit",
                "Too many requests for fresh evidence.",
                retry_after=max(1, ceil(wait)),
            )
        try:
            return await self._make(identity, nonce)
        except Exception as exc:  # noqa: BLE001 - a device or file failed; what it said is for the log's reader alone
            log.error("evidence failed", **failure(exc))
            raise ApiError(503, "evidence_failed", "Evidence could not be made.", retry_after=5) from None

    def renew_now(self) -> None:
        """There is a successor that needs evidence."""
        self._wake.set()

    async def renew(self) -> None:
        """Keep the documents young, for as long as the gateway runs."""
        while True:
            self._wake.clear()
            try:
                await self._renew()
                delay = self._renew_seconds
            except Exception as exc:  # noqa: BLE001 - the old document stays in use; the next attempt is near
                log.error("evidence failed", **failure(exc))
                delay = _RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()

    async def _renew(self) -> None:
        made = {}
        for identity in (self._identities.newest, self._identities.current):
            if identity.statement_digest not in made:
                made[identity.statement_digest] = await self._make(identity, secrets.token_bytes(NONCE_BYTES))
                self._documents |= made
                self._identities.prepared(identity)
        self._documents, self._made_at = made, time.monotonic()

    def _identity(self) -> Identity:
        """The current one; its statement says that it lives."""
        identity = self._identities.current
        if self._identities.seconds_left(identity) <= 0:
            raise identity_expired()
        return identity

    async def _make(self, identity: Identity, nonce: bytes) -> Document:
        work = asyncio.get_running_loop().run_in_executor(
            self._hardware, self._document, identity.statement_bytes, nonce
        )
        async with asyncio.timeout(self._patience_seconds):
            return Document(nonce, await work)

    def _document(self, statement: bytes, nonce: bytes) -> bytes:
        gpu = self._tee.gpus(gpu_nonce(nonce, statement))
        return dump_evidence(
            Evidence(
                statement=statement,
                cpu=self._tee.evidence(report_data(nonce, statement, gpu)),
                gpu=gpu,
                event_log=self._tee.event_log(),
                serving_seal=self._tee.seal(statement),
                collateral=self._tee.collateral(),
            )
        )
