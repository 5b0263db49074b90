"""What one way of doing a thing costs beyond another, on a machine that others use: measured in turn, and told with its doubt.

In each round every way has its turn within moments of the others, in an order that goes round, so that what a neighbour
does to one it does to all; what is compared is the difference within a round. Of these differences the median is told, with
the interval that holds the true one 99 times of 100, by rank and whatever their distribution. A goal is met only when all
of that interval is within it.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import comb

LEVEL = 0.99


@dataclass(frozen=True, kw_only=True)
class Found:
    """A median and the interval around it; `base` is what the way costs that it is compared with."""

    median: float
    low: float
    high: float
    rounds: int
    base: float = 0.0

    def times(self, factor: float) -> Found:
        """The same in another unit."""
        values = {name: getattr(self, name) * factor for name in ("median", "low", "high", "base")}
        return Found(rounds=self.rounds, **values)

    def against(self, limit: float) -> str:
        """What is known of the goal to stay at or below `limit`."""
        if self.high <= limit:
            return "met"
        return "**not met**" if self.low > limit else "undecided"


def found(values: Sequence[float], base: Sequence[float] = (0.0,)) -> Found:
    """The median of `values`, and between which of them the true one is."""
    ordered = sorted(values)
    cut = _cut(len(ordered))
    return Found(
        median=statistics.median(ordered),
        low=ordered[cut],
        high=ordered[-1 - cut],
        rounds=len(ordered),
        base=statistics.median(base),
    )


def _cut(count: int) -> int:
    """How many values may be left out at either end: the true median is further out with a chance below 1 - LEVEL."""
    chance, cut = 0.0, -1
    while chance <= (1 - LEVEL) / 2:
        cut += 1
        chance += comb(count, cut) / 2**count
    if not cut:
        raise ValueError(f"{count} rounds tell nothing of a median; eight do")
    return cut - 1


def added(rounds: Sequence[dict[str, float]], base: str) -> dict[str, Found]:
    """By how much each way is above `base`, round by round."""
    names = [name for name in rounds[0] if name != base]
    theirs = [each[base] for each in rounds]
    return {name: found([each[name] - each[base] for each in rounds], theirs) for name in names}


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of one round: each way is first, and each follows every other, as often as the rest."""
    turned = list(names[number % len(names) :]) + list(names[: number % len(names)])
    return turned[::-1] if number // len(names) % 2 else turned


def rounds_of(
    ways: dict[str, Callable[[], float]], count: int, unmeasured: int = 2
) -> list[dict[str, float]]:
    """What each way measured in each round, after some that are not counted."""
    seen = []
    for number in range(count + unmeasured):
        this = {name: ways[name]() for name in in_turn(list(ways), number)}
        if number >= unmeasured:
            seen.append(this)
    return seen


@contextmanager
def steady() -> Iterator[None]:
    """What is there already is no work for the garbage collector while it is measured, in any way."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
