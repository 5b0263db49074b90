"""The way in: who is it, may it now, is there room; and afterwards, what did it use.

With `access = "keys"` a request needs a key. With `access = "open"` it needs none: only the bounds on work at once hold.
No API key is ever part of a log line, a metric, a receipt or the text of an error.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from enclave_server.access.admission import Admission
from enclave_server.access.body import for_engine
from enclave_server.access.keys import Key, presented
from enclave_server.asgi import Fields
from enclave_server.choices import AccessMode
from enclave_server.errors import secrets_missing
from enclave_server.exchange import Exchange
from enclave_server.log import log
from enclave_server.mendable import MendableError
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings

if TYPE_CHECKING:
    from enclave_server.access.keyring import KeyRing


@dataclass(slots=True)
class Visit:
    """One admitted request."""

    key: Key | None = None
    salt: bytes | None = None  # of its tenant
    reached_engine: bool = False

    def body(
        self, body: bytes, members: Mapping[str, Any] | None, path: bytes, *, ids: bool = False
    ) -> tuple[bytes, bool]:
        """What the engine is to get, and whether token counts in its stream are for the gateway alone. `members`: of JSON."""
        self.reached_engine = True
        if members is None or not (self.salt or ids):
            return body, False
        return for_engine(body, members, path, self.salt, ids=ids)


class Access:
    """Made once, before workers are forked; entered in each of them."""

    def __init__(self, settings: Settings, given: Secrets | None = None) -> None:
        self.secrets = given or Secrets(settings)
        self.admission = Admission(
            in_flight=settings.max_in_flight,
            queued=settings.max_queued,
            seconds=settings.queue_seconds,
            workers=settings.workers,
        )
        self._ring = _key_ring(settings, self.secrets) if settings.access is AccessMode.KEYS else None
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

    def begin(self, worker: int) -> None:
        """In the worker with this number, before its first request."""
        self.admission.begin(worker)
        if self._ring is not None:
            self._ring.limiter.begin(worker)

    async def __aenter__(self) -> Self:
        if self._ring is not None:
            try:
                if not self.secrets.missing:
                    await asyncio.to_thread(self._ring.prepare)
            except MendableError as exc:  # a worker that is started again outlives a database that is away
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

    async def admit(self, fields: Fields) -> Visit:
        """Let a request in until `leave`, or refuse it: 401, 429 or 503."""
        if self.secrets.missing:
            raise secrets_missing()
        if self._ring is None:
            if not self.admission.entered():
                await self.admission.enter()
            return Visit()
        key = self._ring.find(presented(fields))
        try:
            self._ring.limiter.enter(key)
            try:
                if not self.admission.entered():
                    await self.admission.enter()
            except BaseException:
                self._ring.limiter.leave(key)
                raise
        except BaseException:
            self._ring.count(key, None, refused=True)
            raise
        return Visit(key, self.salt(key.tenant))

    def leave(self, visit: Visit, exchange: Exchange) -> None:
        """The request has ended: count what it used."""
        self.admission.leave()
        if visit.key is None or self._ring is None:
            return
        self._ring.limiter.leave(visit.key)
        self._ring.count(visit.key, exchange.usage, refused=False)
        if visit.reached_engine:
            self._ring.limiter.charge(visit.key, tokens_of(exchange))

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


def _key_ring(settings: Settings, given: Secrets) -> KeyRing:
    from enclave_server.access.keyring import KeyRing  # noqa: PLC0415 - and the database's library, for keys alone

    return KeyRing(settings, given)
