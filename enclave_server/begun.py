"""Work that is begun where no task is, as in a callback, and ended in a task only when it has to wait."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any

Work = Coroutine[Any, Any, None]


class Rest:
    """What is left of work that was begun and has to wait: to be awaited once, in a task. Dropping it ends the work there."""

    __slots__ = ("_waits_for", "_work")

    def __init__(self, work: Work, waits_for: Any) -> None:
        self._work, self._waits_for = work, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield self._waits_for
        except BaseException as exc:
            self._work.throw(exc)
            raise
        yield from self._work.__await__()


def begin(work: Work) -> Rest | None:
    """Run `work` until it waits; None when it has ended. What it raises is raised here."""
    try:
        return Rest(work, work.send(None))
    except StopIteration:
        return None
