"""A log that somebody else runs: entries go to `POST /add`, as Tessera's servers take them, and are read by c2sp.org/tlog-tiles.

The answer to `/add` is the entry's index in decimal. Where each entry is stays on this machine's disk; everything else is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attestation.checks import Check
from attestation.errors import UnavailableError
from attestation.tlog import VerifierKey, verify_checkpoint
from attestation.tlog.checkpoint import parse_number
from attestation.tlog.tiles import CHECKPOINT
from enclave_server.receipts.store import Index

if TYPE_CHECKING:
    import httpx

AT_ONCE = 64
SECONDS = 30.0
_MAX_ANSWER = 128 * 1024


class RemoteLog:
    """The writer's side."""

    def __init__(self, url: str, key: VerifierKey, folder: Path) -> None:
        self._url, self._key, self._index = url.rstrip("/"), key, Index(folder)
        self._known = False

    async def append(self, entries: Sequence[bytes]) -> None:
        """Put entries into the log; all have their places when this returns. One may be there twice after a failure, which is harmless."""
        import httpx  # noqa: PLC0415 - only where a log is elsewhere

        limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
        async with httpx.AsyncClient(limits=limits, timeout=SECONDS, trust_env=False) as client:
            if not self._known:
                answer = await client.get(f"{self._url}/{CHECKPOINT}")
                verify_checkpoint(answer.raise_for_status().content, self._key)
                self._known = True
            numbers = await asyncio.gather(*(self._add(client, entry) for entry in entries))
        if entries:
            await asyncio.to_thread(self._index.add, numbers, entries)

    async def _add(self, client: httpx.AsyncClient, entry: bytes) -> int:
        answer = await client.post(f"{self._url}/add", content=entry)
        return parse_number(answer.raise_for_status().text.strip(), "the index")


def fetch(url: str, path: str) -> bytes | None:
    """A resource of a log elsewhere; None when it has none."""
    import httpx  # noqa: PLC0415

    try:
        answer = httpx.get(f"{url.rstrip('/')}/{path}", timeout=SECONDS, trust_env=False)
    except httpx.HTTPError as exc:
        raise UnavailableError(Check.LOG_FETCH, f"{type(exc).__name__}") from exc
    if answer.status_code == 404:
        return None
    if answer.status_code != 200 or len(answer.content) > _MAX_ANSWER:
        raise UnavailableError(Check.LOG_FETCH, f"status {answer.status_code}, {len(answer.content)} bytes")
    return answer.content
