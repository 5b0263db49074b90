"""What was here before: the encapsulated key of each sealed request, for as long as the request could be accepted again.

Bounded, and closed when full: a request that cannot be remembered is refused, never let through. The time comes from the
same clock that judges the requests' own, which in no process goes back behind what another one forgot (`earliest`): who
sets this machine's clock cannot make it forget. The memory is shared with every process that is forked off later, so a
request is answered once by all workers together.
"""

from __future__ import annotations

import mmap
import os
import weakref
from contextlib import AbstractContextManager, nullcontext
from hashlib import sha256

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.sealed import MAX_CLOCK_SKEW
from enclave_server.errors import ApiError
from enclave_server.lock import alone

WINDOW = (
    2 * MAX_CLOCK_SKEW + 2
)  # seconds from the first moment at which a request is accepted to the last, and rounding
_WORD = 8
_TURN, _YOUNG = 0, 1  # words of the first page: when the tables change places, and which one is young
_COUNT = (2, 3)  # entries of each table


class Replays:
    """Remembers for one window at least, and for two at most: by then the request's own time refuses it.

    Two tables of 8-byte digests, found by probing; the old one is emptied at every turn. A table is in parts, each four times
    as large as the one before it and taken into use when that is half full: so the memory in use follows what is remembered.
    In one part, each of the first thousands would touch a page of its own in either table.
    """

    def __init__(self, limit: int, *, shared: bool = True) -> None:
        self._limit, self._shared = limit, shared  # not shared: asked by one process at a time
        self._parts = _parts(limit)
        self._table = sum(slots for _, _, slots in self._parts) * _WORD
        self._file = os.memfd_create("replays", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, mmap.PAGESIZE + 2 * self._table)
        self._memory = mmap.mmap(self._file, 0)  # pages are taken when they are first written
        self._words = memoryview(self._memory).cast("Q")

    @property
    def earliest(self) -> int:
        """When something was last forgotten. It is later than that, whatever this machine's clock says."""
        return int(self._words[_TURN]) - WINDOW

    def check(self, enc: bytes, now: float) -> None:
        """This key is new, and there is room to remember it. Mostly asked without the lock: `remember` has the last word."""
        if now < self._words[_TURN]:
            self._look(_short(enc), int(now))
            return
        with self._locked():
            self._check(_short(enc), int(now))

    def remember(self, enc: bytes, now: float) -> None:
        """Once the request was opened. Of those who remember the same key, in whatever process, one gets through."""
        short = _short(enc)
        with self._locked():
            places = self._check(short, int(now))
            if now < self.earliest:  # another process forgot meanwhile, by a clock that was set
                raise VerificationError(Check.SEALED_TIME, "this machine's clock was set back")
            young = self._words[_YOUNG]
            self._words[places[young]] = short
            self._words[_COUNT[young]] += 1

    def _locked(self) -> AbstractContextManager[None]:
        return alone(self._file) if self._shared else nullcontext()

    def _check(self, short: int, now: int) -> tuple[int, int]:
        if now >= self._words[_TURN]:
            self._turn(now)
        return self._look(short, now)

    def _look(self, short: int, now: int) -> tuple[int, int]:
        """The empty place for a new entry in either table."""
        places = self._place(0, short), self._place(1, short)
        if self._words[places[0]] or self._words[places[1]]:
            raise VerificationError(Check.SEALED_REPLAY, "this sealed request was here before")
        if self._words[_COUNT[0]] + self._words[_COUNT[1]] >= self._limit:
            wait = max(1, self._words[_TURN] - now)
            raise ApiError(503, "sealed_full", "Too many sealed requests in a few minutes.", retry_after=wait)
        return places

    def _turn(self, now: int) -> None:
        """The old table is emptied and becomes the young one; after a long pause, both are emptied."""
        if now >= self._words[_TURN] + WINDOW:
            self._empty(self._words[_YOUNG])
        self._words[_YOUNG] ^= 1
        self._empty(self._words[_YOUNG])
        self._words[_TURN] = now + WINDOW

    def _empty(self, table: int) -> None:
        self._memory.madvise(mmap.MADV_REMOVE, mmap.PAGESIZE + table * self._table, self._table)
        self._words[_COUNT[table]] = 0

    def _place(self, table: int, short: int) -> int:
        """Where in a table an entry stands, or would."""
        first, held = (mmap.PAGESIZE + table * self._table) // _WORD, self._words[_COUNT[table]]
        place = first
        for taken_at, start, slots in self._parts:
            if taken_at > held:
                break
            at = short % slots
            while (found := self._words[first + start + at]) and found != short:
                at = (at + 1) % slots
            place = first + start + at
            if found:
                break
        return place


def _parts(limit: int) -> tuple[tuple[int, int, int], ...]:
    """Of a table for so many entries: how many it has when the part is taken into use, and the part's first word and size."""
    parts, entries, page = [], 0, mmap.PAGESIZE // _WORD
    pages = 1
    while entries < limit:
        slots = page * min(pages, -(-2 * (limit - entries) // page))
        parts.append((entries, 2 * entries, slots))
        entries, pages = entries + slots // 2, 4 * pages
    return tuple(parts)


def _short(enc: bytes) -> int:
    """8 bytes of a digest: nobody can aim at a key that another client has not sent yet. Never 0, which is an empty place."""
    return int.from_bytes(sha256(enc).digest()[:_WORD], "big") or 1
