"""How many requests are in work at once, and how many may wait for it. Bounded, so that memory is too.

A request takes its place before its body is read: at most `in_flight` bodies and answers are held, and `queued` more
requests cost no more than their heads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from enclave_server.errors import ApiError


class Admission:
    """Places for requests, given in the order of asking."""

    def __init__(self, *, in_flight: int, queued: int, seconds: float) -> None:
        self._limit, self._max_queued, self._seconds = in_flight, queued, seconds
        self._places = asyncio.Semaphore(in_flight)
        self.in_flight = self.queued = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place for the block; 503 when the queue is full or moves too slowly."""
        await self._take()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._places.release()

    async def _take(self) -> None:
        if not self._places.locked():
            await self._places.acquire()
            return
        if self.queued >= self._max_queued:
            raise overloaded()
        self.queued += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._places.acquire()
        except TimeoutError:
            raise overloaded() from None
        finally:
            self.queued -= 1


def overloaded() -> ApiError:
    return ApiError(
        503, "overloaded", "Too many requests are waiting already. Try again soon.", retry_after=2
    )
