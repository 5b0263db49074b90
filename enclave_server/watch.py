"""What ends a request from outside: its time is over, or its client has gone.

Both cancel the request's task and come out of it as the error that says why. One timer and one callback do it: a task for
each request that waits for the client to go, and a context for each limit, took a tenth of the gateway's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

_LOOK_SECONDS = 5.0  # how soon the timer rings at the latest: a time set later then hardly ever needs another
CONNECTION = "connection"  # where a request's ASGI state has its client's connection


class ClientGoneError(Exception):
    """Nobody is left to answer."""


class Connection:
    """One client's, as far as the application is to know it."""

    __slots__ = ("lost", "read_on", "when_lost")

    def __init__(self, read_on: Callable[[], None]) -> None:
        self.read_on = read_on  # so that its end is seen
        self.lost = False
        self.when_lost: Callable[[], None] | None = None

    def end(self) -> None:
        """It is lost."""
        self.lost = True
        if self.when_lost is not None:
            self.when_lost()


class Watch:
    """Watches over the task that runs the block. What it ends the block with is raised at the block's end."""

    __slots__ = (
        "_cancelling",
        "_connection",
        "_error",
        "_loop",
        "_outcome",
        "_rings_at",
        "_task",
        "_timer",
        "_when",
    )

    def __init__(self, seconds: float, error: Callable[[], Exception]) -> None:
        """For a block that begins now: it ends after `seconds` with an `error`."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("there is no task to watch over")
        self._task = task
        self._cancelling = task.cancelling()
        now = self._loop.time()
        self._when, self._error = now + seconds, error
        self._rings_at = now + min(seconds, _LOOK_SECONDS)
        self._timer: asyncio.TimerHandle | None = self._loop.call_at(self._rings_at, self._ring)
        # Not the exception itself: that would hold the frames which hold this, and all that is in them.
        self._outcome: Callable[[], Exception] | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.when_lost = None
        if self._outcome is not None:
            cancelled_by_others = self._task.uncancel() > self._cancelling
            if kind is asyncio.CancelledError and not cancelled_by_others:
                raise self._outcome() from None

    @contextmanager
    def sooner(self, seconds: float, error: Callable[[], Exception]) -> Iterator[None]:
        """For a part of the block: end all of it after `seconds`, or at its own time, with an `error`."""
        own = self._when, self._error
        self._when, self._error = min(self._when, self._loop.time() + seconds), error
        if self._timer is not None and self._when < self._rings_at:
            self._timer.cancel()
            self._set()
        try:
            yield
        finally:
            self._when, self._error = own  # when it rings, it looks again

    def client(self, state: Mapping[str, Any]) -> None:
        """From now on, end the block with ClientGoneError when the client goes."""
        connection: Connection | None = state.get(CONNECTION)
        if connection is None:
            return
        self._connection = connection
        connection.when_lost = self._gone
        connection.read_on()
        if connection.lost:
            self._gone()

    def _set(self) -> None:
        self._rings_at = min(self._when, self._loop.time() + _LOOK_SECONDS)
        self._timer = self._loop.call_at(self._rings_at, self._ring)

    def _ring(self) -> None:
        if self._loop.time() < self._when:
            self._set()
        else:
            self._timer = None
            self._end(self._error)

    def _gone(self) -> None:
        self._end(ClientGoneError)

    def _end(self, error: Callable[[], Exception]) -> None:
        if self._outcome is None:
            self._outcome = error
            self._task.cancel()
