"""Every receipt's hash goes into an append-only log, off the way of the answers.

A worker puts the hash into a queue and hands the queue over a hundred times a second, through a socket that all workers share, to
the one process that writes: the engine's keeper, which outlives them. That one appends a batch every `log_seconds`. While the log cannot take
receipts, the gateway is not ready and answers nothing but signed refusals; and queues have an end.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.tlog import VerifierKey, parse_verifier_key
from enclave_server.log import failure, log
from enclave_server.receipts.remote import RemoteLog
from enclave_server.receipts.store import begin_log, hold
from enclave_server.settings import Settings

HASH = 32
MESSAGE = 256 * HASH
MAX_WAITING = 65_536  # hashes in a worker's queue, 6 MB: beyond it the worker takes no request
MAX_BATCH = 65_536  # hashes that are appended at once
HAND_OVER_SECONDS, RETRY_SECONDS, LAST_SECONDS = 0.01, 1.0, 10.0
_LAST_ATTEMPTS = 3
_Append = Callable[[Sequence[bytes]], Awaitable[None]]


class ReceiptQueue:
    """A worker's receipts on their way to the writer."""

    def __init__(self, channel: socket.socket, ready: mmap.mmap) -> None:
        self._channel, self._ready = channel, ready
        self._waiting: deque[bytes] = deque()
        self._due = False

    def add(self, token: str) -> None:
        """Take a receipt that is about to be given out."""
        self._waiting.append(sha256(token.encode()).digest())
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(HAND_OVER_SECONDS, self.hand_over)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def unready(self) -> str | None:
        """Why no receipt may be given out now."""
        if not self._ready[0]:
            return "log_failed"
        return "log_behind" if len(self._waiting) > MAX_WAITING else None

    async def drain(self) -> None:
        """Hand everything over; what cannot be in time is lost, and said."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._waiting:
                    self.hand_over()
                    await asyncio.sleep(HAND_OVER_SECONDS)
        if self._waiting:
            log.error("receipts were not logged", count=len(self._waiting))

    def hand_over(self) -> None:
        """Send what waits, as far as it goes; the rest goes a moment later."""
        self._due = False
        waiting = self._waiting
        try:
            while waiting:
                some = list(islice(waiting, MESSAGE // HASH))
                self._channel.send(b"".join(some))
                for _ in some:
                    waiting.popleft()
        except OSError:  # the writer is behind, or gone
            self._due = True
            asyncio.get_running_loop().call_later(HAND_OVER_SECONDS, self.hand_over)


class ReceiptLog:
    """What a boot's processes share of its log. Made before the fork; each calls only its own part."""

    def __init__(
        self, key: VerifierKey, append: _Append, seconds: float, *, ready: bool, lock: int | None = None
    ) -> None:
        self.key, self._append, self._seconds, self._lock = key, append, seconds, lock
        self._batch: list[bytes] = []  # the writer's, still to be appended
        self._ready = mmap.mmap(-1, 1)
        self._ready[0] = ready
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._near.setblocking(False)
        self._far.setblocking(False)

    @classmethod
    def open(cls, settings: Settings) -> ReceiptLog | None:
        """The log that the settings ask for. A log of this gateway's own is begun here, with a key of its own."""
        if settings.log_dir is None:
            return None
        if settings.log_url is not None:
            key = parse_verifier_key(settings.log_key or "")
            folder = log_folder(settings.log_dir, key.key)
            folder.mkdir(parents=True, exist_ok=True)
            remote = RemoteLog(settings.log_url, key, folder)
            return cls(key, remote.append, settings.log_seconds, ready=False)
        lock = hold(settings.log_dir)
        store = begin_log(settings.log_dir, Ed25519PrivateKey.generate())

        async def append(entries: Sequence[bytes]) -> None:
            await asyncio.to_thread(store.append, entries)

        return cls(store.key, append, settings.log_seconds, ready=True, lock=lock)

    def queue(self) -> ReceiptQueue:
        """A worker's part."""
        return ReceiptQueue(self._near, self._ready)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """The writer's part: append what the workers hand over, for as long as the block lasts, and all that is left at its end."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._write(stop))
        try:
            yield
        finally:
            stop.set()
            await task

    async def beside(self, work: Awaitable[int]) -> int:
        """`writing`, while `work` is being done."""
        async with self.writing():
            return await work

    async def _write(self, stop: asyncio.Event) -> None:
        attempts = 0
        self._hear(on=True)
        while True:
            if last := stop.is_set():
                self._receive()
            if self._batch or not self._ready[0]:
                attempts = 0 if await self._appended() else attempts + 1
            if last and (not self._batch or attempts >= _LAST_ATTEMPTS):
                break
            if attempts:
                await asyncio.sleep(RETRY_SECONDS)
            elif not last and len(self._batch) < MAX_BATCH:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._seconds)
        self._hear(on=False)
        if self._batch:
            log.error("receipts were not logged", count=len(self._batch))

    async def _appended(self) -> bool:
        """Append what has come and let go of it; or keep it, and tell everybody."""
        batch = self._batch[:MAX_BATCH]
        try:
            await self._append(batch)
        except Exception as exc:  # noqa: BLE001 - a full disk, a log that does not answer: whatever it is, it is tried again
            if self._ready[0]:
                log.error("log failed", count=len(batch), **failure(exc))
            self._ready[0] = 0
            return False
        del self._batch[: len(batch)]
        self._hear(on=True)
        if not self._ready[0]:
            log.info("log takes receipts")
            self._ready[0] = 1
        return True

    def _receive(self) -> None:
        """Take what was handed over, up to a limit; then what hands over is held up."""
        with suppress(BlockingIOError):
            while len(self._batch) < 2 * MAX_BATCH:
                data = self._far.recv(MESSAGE)
                self._batch += (data[at : at + HASH] for at in range(0, len(data), HASH))
            self._hear(on=False)

    def _hear(self, *, on: bool) -> None:
        loop = asyncio.get_running_loop()
        if on:
            loop.add_reader(self._far, self._receive)
        else:
            loop.remove_reader(self._far)

    def close(self) -> None:
        """Let go of the directory and the sockets. A gateway that ends need not."""
        self._near.close()
        self._far.close()
        if self._lock is not None:
            os.close(self._lock)


def log_folder(log_dir: Path, key: bytes) -> Path:
    """Where everything about the log of this key is."""
    return log_dir / key.hex()
