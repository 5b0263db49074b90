"""By which factor one way is slower than another, on a machine that drifts and that others use: many short blocks, ABBA.

A round is four blocks, `A B B A`, and the next one `B A A B`: what drifts evenly while a round lasts cancels in it. A round
says by how much the logarithms of B's two times are above those of A's two. Were both ways alike, that would lie above zero as
often as below and as far, however lopsided the disturbances are, since both sides have as many blocks. (Where one block
is held against the mean of two that is not so: disturbances only ever slow, so that the mean has more of them, and a
median of such rounds makes the single block look faster than it is.)

Of the rounds the centre is told, after Hodges and Lehmann: the median of the means of all pairs of them, which is hardly less
steady than a mean where there are no outliers and does not follow those that there are. Its interval is by ranks
(Wilcoxon's signed ranks), so that it holds the true one at least as often as `paired.LEVEL` says, whatever the
distribution, as long as it is symmetric and rounds know nothing of each other. No block is left out but those of the first rounds.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import log
from statistics import fmean, median

from benchmarks.paired import LEVEL, Found

UNMEASURED = 2  # rounds
LEAST = 8  # fewer tell nothing


@dataclass(frozen=True)
class Round:
    """What the two blocks of either way took, in the order they ran in; `first` is the way that began and ended the round."""

    first: str
    a: tuple[float, float]
    b: tuple[float, float]

    @property
    def slower(self) -> float:
        """The logarithm of the factor by which B was slower."""
        return fmean(map(log, self.b)) - fmean(map(log, self.a))

    @property
    def again(self) -> float:
        """The same of A against A: what this method finds where nothing is. Earlier and later take turns."""
        earlier, later = map(log, self.a)
        return later - earlier if self.first == "a" else earlier - later


def rounds_for(
    seconds: float,
    a: Callable[[], float],
    b: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
) -> list[Round]:
    """As many rounds as begin within `seconds`, and as `centre` needs; the first ones are not counted."""
    rounds: list[Round] = []
    end = clock() + seconds
    while clock() < end or len(rounds) < UNMEASURED + LEAST:
        if len(rounds) % 2:
            b1, a1, a2, b2 = b(), a(), a(), b()
            rounds.append(Round("b", (a1, a2), (b1, b2)))
        else:
            a1, b1, b2, a2 = a(), b(), b(), a()
            rounds.append(Round("a", (a1, a2), (b1, b2)))
    return rounds[UNMEASURED:]


def centre(values: Sequence[float]) -> Found:
    """The centre of `values`, and between which of the means of their pairs the true one is."""
    count = len(values)
    left_out = _signed_rank(count)
    if not left_out:
        raise ValueError(f"{count} rounds tell nothing of their centre; {LEAST} do")
    means = sorted((one + other) / 2 for at, one in enumerate(values) for other in values[at:])
    return Found(median=median(means), low=means[left_out - 1], high=means[-left_out], rounds=count)


@cache
def _signed_rank(count: int) -> int:
    """The least sum of signed ranks that is not among the rarest (1 - LEVEL) / 2; 0 where even none at all is not that rare."""
    chances = [
        1.0
    ]  # of each sum, up to half of the greatest one, of so many ranks that each have a sign by chance
    for rank in range(1, count + 1):
        longest = min(len(chances) + rank, count * (count + 1) // 4 + 1)
        without = chances + [0.0] * (longest - len(chances))
        chances = [(one + other) / 2 for one, other in zip(without, [0.0] * rank + chances, strict=False)]
    return bisect_left(list(accumulate(chances)), (1 - LEVEL) / 2)
