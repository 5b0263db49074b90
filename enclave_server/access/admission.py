"""How many requests may be with the engine at once, and how many may wait for a place, in all workers together.

So memory is bounded by settings, not by how many clients there are: `in_flight` requests hold bodies, and `queued` more
requests cost no more than their heads. Requests of one worker get places in the order of asking; between workers it is chance.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from enclave_server.access.shared import Tally
from enclave_server.errors import ApiError

_RUNNING, _WAITING = 0, 1
_LOOK_SECONDS = 0.01  # how soon a place that became free in another worker is seen by those who wait here


class Admission:
    """Places for requests."""

    def __init__(self, *, in_flight: int, queued: int, seconds: float, workers: int = 1) -> None:
        self._limit, self._max_queued, self._seconds = in_flight, queued, seconds
        self._tally, self._alone = Tally(2, workers), workers == 1
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._looking = False  # someone comes back to look
        self.begin = self._tally.begin

    @property
    def queued(self) -> int:
        """Here, in this worker."""
        return len(self._waiters)

    def entered(self) -> bool:
        """Take a place, to be left with `leave`, if one is free and nobody waits for it."""
        return not self._waiters and self._taken()

    async def enter(self) -> None:
        """Take a place, and wait for it; 503 when the queue is full or moves too slowly."""
        if self.entered():
            return
        try:
            if self._tally.add(_WAITING, 1) > self._max_queued:
                raise overloaded()
            async with asyncio.timeout(self._seconds):
                await self._wait()
        except TimeoutError:
            raise overloaded() from None
        finally:
            self._tally.add(_WAITING, -1)

    def leave(self) -> None:
        self._tally.add(_RUNNING, -1)
        if self._waiters:
            self._give()

    def _taken(self) -> bool:
        if self._tally.add(_RUNNING, 1) <= self._limit:
            return True
        self._tally.add(_RUNNING, -1)
        return False

    def _give(self) -> None:
        """Places that are free to those who wait here longest."""
        while self._waiters:
            if not self._waiters[0].done():  # done: it has gone
                if not self._taken():
                    return
                self._waiters[0].set_result(None)
            self._waiters.popleft()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if not self._looking and not self._alone:
            self._look()
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():  # it was given a place, and cannot use it
                self.leave()
            with suppress(ValueError):
                self._waiters.remove(waiter)
            raise

    def _look(self) -> None:
        self._give()
        self._looking = bool(self._waiters)
        if self._looking:
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)


def overloaded() -> ApiError:
    return ApiError(
        503, "overloaded", "Too many requests are waiting already. Try again soon.", retry_after=2
    )
