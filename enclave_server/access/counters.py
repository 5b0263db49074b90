"""Where `limits` counts: memory that all workers of one gateway share, so a key's limit is one limit.

A fixed table in an anonymous mapping, made before workers are forked. Where there are several, a file lock guards it,
because the kernel takes that from a process that dies. Entries end by themselves; when no place is free, the entry that ends first gives way.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b

from limits.storage import Storage

from enclave_server.lock import alone

SLOTS = 1 << 16
PROBES = 16
_SLOT = struct.Struct("<16sqd")  # name, count, Unix time of its end


class SharedCounters(Storage):
    """Counters with an end, for `limits`' fixed windows."""

    STORAGE_SCHEME = None  # not to be had by URL

    def __init__(self, slots: int = SLOTS, *, shared: bool = True) -> None:
        super().__init__()
        self._lock = os.memfd_create("lock", os.MFD_CLOEXEC) if shared else None
        self._slots = slots
        self._table = mmap.mmap(-1, slots * _SLOT.size)

    @property
    def base_exceptions(self) -> type[Exception]:
        return OSError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to a counter; its end is `expiry` seconds after its first use."""
        name = _name(key)
        with self._locked():
            at, count, end = self._find(name)
            if not count:
                end = time.time() + expiry
            _SLOT.pack_into(self._table, at, name, count + amount, end)
        return count + amount

    def get(self, key: str) -> int:
        """Without the lock: a count that is being changed is as good as the one before."""
        return self._find(_name(key))[1]

    def get_expiry(self, key: str) -> float:
        return self._find(_name(key))[2]

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        with self._locked():
            self._table[:] = bytes(len(self._table))
        return None

    def clear(self, key: str) -> None:
        with self._locked():
            _SLOT.pack_into(self._table, self._find(_name(key))[0], bytes(16), 0, 0.0)

    def _find(self, name: bytes) -> tuple[int, int, float]:
        """The counter's place, count and end; (place to put it, 0, now) when it has none that still lives."""
        now = time.time()
        first = int.from_bytes(name[:8], "little")
        free, free_end = -1, float("inf")
        for step in range(PROBES):
            at = (first + step) % self._slots * _SLOT.size
            found, count, end = _SLOT.unpack_from(self._table, at)
            if found == name and end > now:
                return at, count, end
            if end <= now:
                end = 0.0
            if end < free_end:
                free, free_end = at, end
        return free, 0, now

    def _locked(self) -> AbstractContextManager[None]:
        return nullcontext() if self._lock is None else alone(self._lock)


def _name(key: str) -> bytes:
    return blake2b(key.encode(), digest_size=16).digest()
