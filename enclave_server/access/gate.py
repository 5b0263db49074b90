"""The way in: who is it, may it now, is there room; and afterwards, what did it use.

With `access = "keys"` a request needs a key. With `access = "open"` it needs none: only the bounds on work at once hold.
No API key is ever part of a log line, a metric, a receipt or the text of an error.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from enclave_server.access.admission import Admission
from enclave_server.access.body import for_engine
from enclave_server.access.keyring import KeyRing
from enclave_server.access.keys import presented
from enclave_server.access.limiter import Limiter
from enclave_server.access.store import StoreError
from enclave_server.errors import secrets_missing
from enclave_server.exchange import Exchange
from enclave_server.log import log
from enclave_server.provisioning import Secrets
from enclave_server.settings import AccessMode, Settings


@dataclass(slots=True)
class Visit:
    """One admitted request."""

    salt: bytes | None  # of its tenant
    reached_engine: bool = False

    def body(self, body: bytes, path: bytes, *, ids: bool = False) -> tuple[bytes, bool]:
        """What the engine is to get, and whether token counts in its stream are for the gateway alone."""
        self.reached_engine = True
        return for_engine(body, path, self.salt, ids=ids) if body and (self.salt or ids) else (body, False)


class Access:
    """Made once, before workers are forked; entered in each of them."""

    def __init__(self, settings: Settings, given: Secrets | None = None) -> None:
        self.secrets = given or Secrets(settings)
        self.admission = Admission(
            in_flight=settings.max_in_flight, queued=settings.max_queued, seconds=settings.queue_seconds
        )
        self._ring = KeyRing(settings, self.secrets) if settings.access is AccessMode.KEYS else None
        self._limiter = Limiter(settings)
        self._salt_secret = secrets.token_bytes(32)  # of this boot: salts cannot be guessed, nor kept
        self._salts: dict[str, bytes] = {}

    def prepare(self) -> None:
        """Look at the database before anything slow is started."""
        if self._ring is None:
            log.warning("access is open: whoever reaches this gateway may use it")
        elif self.secrets.missing:
            log.warning("nobody is answered until the owner has given the secrets: see `attested provision`")
        elif not (count := self._ring.prepare()):
            log.warning("there is no usable API key yet: see `enclave-server keys create`")
        else:
            log.info("access by API key", count=count)

    async def __aenter__(self) -> Self:
        if self._ring is not None:
            try:
                if not self.secrets.missing:
                    await asyncio.to_thread(self._ring.prepare)
            except StoreError as exc:  # a worker that is started again outlives a database that is away
                log.error("key store failed", reason=str(exc))
            self._task = asyncio.create_task(self._ring.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._ring is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            await self._ring.close()

    @property
    def unready(self) -> str | None:
        if self.secrets.missing:
            return "secrets_missing"
        return "access_unavailable" if self._ring is not None and self._ring.stale else None

    @asynccontextmanager
    async def admit(self, headers: Iterable[tuple[bytes, bytes]], exchange: Exchange) -> AsyncIterator[Visit]:
        """Let a request in for the block, or refuse it: 401, 429 or 503. Afterwards its use is counted."""
        if self.secrets.missing:
            raise secrets_missing()
        if self._ring is None:
            async with self.admission.place():
                yield Visit(None)
            return
        key = self._ring.find(presented(headers))
        visit: Visit | None = None
        try:
            with self._limiter.enter(key):
                async with self.admission.place():
                    visit = Visit(self.salt(key.tenant))
                    yield visit
        finally:
            self._ring.count(key, exchange.usage, refused=visit is None)
            if visit is not None and visit.reached_engine:
                self._limiter.charge(key, tokens_of(exchange))

    def salt(self, tenant: str) -> bytes:
        """What keeps a tenant's prefixes in the engine's cache apart: without it, timing tells who asked what before."""
        if tenant not in self._salts:
            self._salts[tenant] = hmac.digest(self._salt_secret, tenant.encode(), "sha256").hex().encode()
        return self._salts[tenant]


def tokens_of(exchange: Exchange) -> int:
    """Tokens of an answer as the engine counted them; without its count, at least what was seen to pass."""
    if exchange.usage is not None:
        return exchange.usage.prompt_tokens + exchange.usage.completion_tokens
    return exchange.request.length // 4 + exchange.event_count if exchange.streaming else 0
