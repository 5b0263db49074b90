"""How much is under way in all workers together. Each counts in cells of its own, and reads all: no number has two writers.

Made before workers are forked. One that is started again begins with its cells at zero, so what a dead one had under way
is forgotten with it.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b

from enclave_server.lock import alone

_CELL, _NAME = 4, 16
ROWS, PROBES = 1 << 14, 16


class Tally:
    """Numbers by row. Whoever counts first and then looks at the sum never lets too many in, whatever others do meanwhile."""

    def __init__(self, rows: int, workers: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, rows * workers * _CELL)).cast("I")
        self._workers, self._own = workers, 0

    def begin(self, worker: int) -> None:
        """In the worker, after the fork."""
        self._own = worker
        for at in range(worker, len(self._cells), self._workers):
            if self._cells[at]:  # a page that was never written stays unwritten
                self._cells[at] = 0

    def add(self, row: int, more: int) -> int:
        """Count `more` in this worker; the sum of all."""
        first = row * self._workers
        own = self._cells[first + self._own] + more
        self._cells[first + self._own] = own
        return own if self._workers == 1 else sum(self._cells[first : first + self._workers])


class NamedTally:
    """The same by name. Where no row is left for a name it shares one: then a limit is stricter, and never looser."""

    def __init__(self, workers: int, *, rows: int = ROWS) -> None:
        self._tally, self._rows = Tally(rows, workers), rows
        self._names, self._lock = mmap.mmap(-1, rows * _NAME), os.memfd_create("lock", os.MFD_CLOEXEC)
        self._known: dict[str, int] = {}
        self.begin = self._tally.begin

    def add(self, name: str, more: int) -> int:
        """Count `more` in this worker; the sum of all."""
        row = self._known.get(name)
        if row is None:
            row = self._known[name] = self._row(name)
        return self._tally.add(row, more)

    def _row(self, name: str) -> int:
        """The row that all workers have for a name: taken by whoever needs it first, and kept."""
        digest = blake2b(name.encode(), digest_size=_NAME).digest()
        first = int.from_bytes(digest[:8], "little") % self._rows
        with alone(self._lock):
            for row in ((first + step) % self._rows for step in range(PROBES)):
                there = self._names[row * _NAME : (row + 1) * _NAME]
                if there == bytes(_NAME):
                    self._names[row * _NAME : (row + 1) * _NAME] = digest
                if there in {bytes(_NAME), digest}:
                    return row
        return first
