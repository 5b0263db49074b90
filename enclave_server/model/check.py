"""The model's files, held against the settings while an engine loads them.

Promises, for each life of the engine: `passed` returns only when every file was hashed since that life began, the digest is
that of the settings, the publisher's signature fits where one is demanded, and no file was written, replaced, added or
removed since, as far as the file system's stamps tell. Of a pack, whose files were hashed on their way into memory, the
stamps alone are compared. docs/models.md says what that does not cover.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from enclave_server.log import log
from enclave_server.model.manifest import check_digest, check_unchanged, read_manifest, stamps_of
from enclave_server.model.signature import check_publisher, parse_public_key
from enclave_server.settings import Settings


class Loading(Protocol):
    """Files that an engine is loading."""

    def look(self) -> None:
        """Raise ModelError when they are known to be wrong."""

    async def passed(self) -> None:
        """Return when they are right and the engine has them; else ModelError. To be asked once it has loaded them."""


def check_files(settings: Settings, stop: threading.Event | None = None) -> None:
    """Hash what lies in `model_dir`, and hold it against the settings."""
    manifest = read_manifest(settings.model_dir, stop=stop)
    check_digest(manifest, settings.model_digest, settings.model_dir)
    if settings.model_signing_key is not None:
        check_publisher(settings.model_dir, manifest, parse_public_key(settings.model_signing_key))
    log.info("model checked", model_digest=settings.model_digest, files=len(manifest.files))


class _Hashing:
    def __init__(self, settings: Settings) -> None:
        self._settings, self._stop = settings, threading.Event()
        self._before = stamps_of(settings.model_dir)
        self._task = asyncio.create_task(asyncio.to_thread(check_files, settings, self._stop))

    def look(self) -> None:
        if self._task.done():
            self._task.result()

    async def passed(self) -> None:
        await asyncio.shield(self._task)
        await asyncio.to_thread(check_unchanged, self._settings.model_dir, self._before)

    async def end(self) -> None:
        self._stop.set()
        with suppress(Exception):  # it was told by `look` or `passed`, or the engine ended first
            await self._task


class ModelFiles:
    """A directory of files, as it lies there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def open(self) -> None:
        """They lie there."""

    @asynccontextmanager
    async def loading(self) -> AsyncIterator[Loading]:
        """Begin to hash; to be entered before the engine starts, and left when it has them or has ended."""
        hashing = _Hashing(self._settings)
        try:
            yield hashing
        finally:
            await hashing.end()
