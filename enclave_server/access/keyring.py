"""The keys as the hot path knows them: in memory, looked at again every few seconds; and their use, written as often.

A change of a key acts within `access_refresh_seconds` in every gateway. When the database cannot be asked, known keys
work on for `access_stale_seconds`, then nobody's does: a key may have been revoked meanwhile.
"""

from __future__ import annotations

import asyncio
import time

from attestation.receipt import Usage
from enclave_server.access.keys import Key, digest_of, unauthorized
from enclave_server.access.limiter import Limiter
from enclave_server.access.store import Store, StoreError, Use
from enclave_server.choices import SecretName
from enclave_server.errors import ApiError
from enclave_server.log import log
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings


class KeyRing:
    """Keys by the digest of their secret."""

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self._settings, self._secrets, self.limiter = settings, secrets, Limiter(settings)
        self._opened: Store | None = None
        if SecretName.DATABASE_URL not in settings.secrets:
            self._opened = Store(settings.access_database)
        self._keys: dict[bytes, Key] = {}
        self._changes: int | None = None
        self._fresh_at = float("-inf")
        self._use: dict[tuple[str, int], Use] = {}  # by key and day since 1970

    @property
    def _store(self) -> Store:
        """Once it is known where it is."""
        if self._opened is None:
            self._opened = Store(self._secrets.database_url)
        return self._opened

    def prepare(self) -> int:
        """Make or migrate the tables, and count the usable keys. Leaves no connection open."""
        try:
            self._store.migrate()
            self.refresh()
        finally:
            self._store.close()
        now = time.time()
        return sum(key.usable(now) for key in self._keys.values())

    def refresh(self) -> None:
        """Look whether a key was changed, and read all of them when one was."""
        asked_at = time.monotonic()
        if (changes := self._store.changes()) != self._changes:
            self._keys = {key.digest: key for key in self._store.all()}
            self._changes = changes
        self._fresh_at = asked_at

    @property
    def stale(self) -> bool:
        return time.monotonic() - self._fresh_at > self._settings.access_stale_seconds

    def find(self, secret: bytes) -> Key:
        """The key with this secret, if it may be used now."""
        if self.stale:
            raise ApiError(503, "access_unavailable", "API keys cannot be checked now.", retry_after=5)
        key = self._keys.get(digest_of(secret, self._secrets.key_pepper))
        if key is None or not key.usable(time.time()):
            raise unauthorized("An unknown, expired or revoked API key")
        return key

    def count(self, key: Key, usage: Usage | None, *, refused: bool) -> None:
        """Remember one request of a key, until `flush`."""
        at = (key.id, int(time.time()) // 86_400)
        if (use := self._use.get(at)) is None:
            use = self._use[at] = Use()
        use.requests += not refused
        use.refused += refused
        if usage is not None:
            use.prompt_tokens += usage.prompt_tokens
            use.completion_tokens += usage.completion_tokens

    async def run(self) -> None:
        """Refresh and flush for as long as the gateway runs, from when it has what it needs."""
        if self._secrets.missing:
            await self._secrets.arrival()
            try:
                await asyncio.to_thread(self.prepare)
            except StoreError as exc:
                log.error("key store failed", reason=str(exc))
        flush_at = time.monotonic() + self._settings.usage_flush_seconds
        while True:
            await asyncio.sleep(self._settings.access_refresh_seconds)
            try:
                await asyncio.to_thread(self.refresh)
            except StoreError as exc:
                log.error("key store failed", reason=str(exc))
            if time.monotonic() >= flush_at:
                await self.flush()
                flush_at = time.monotonic() + self._settings.usage_flush_seconds

    async def flush(self) -> None:
        """Write what was counted; what cannot be written is kept for the next time."""
        counted, self._use = self._use, {}
        if not counted:
            return
        try:
            await asyncio.shield(asyncio.to_thread(self._store.add_use, counted))
        except StoreError as exc:
            log.error("usage cannot be written", reason=str(exc), count=len(counted))
            for at, use in counted.items():
                self._use.setdefault(at, Use()).add(use)

    async def close(self) -> None:
        await self.flush()
        if self._opened is not None:
            await asyncio.to_thread(self._opened.close)
