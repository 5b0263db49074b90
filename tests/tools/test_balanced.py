"""What blocks in the order ABBA say of a slower way, on made-up machines: decided where it can be, and never more surely than it is."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from benchmarks.balanced import UNMEASURED, Round, centre, rounds_for
from benchmarks.paired import Found


class Machine:
    """Blocks of a second that drift, are hindered now and then, and only ever get slower by that."""

    def __init__(self, seed: int, *, drift: float = 0.05, jitter: float = 0.05, stalls: float = 0.2) -> None:
        self.draw = random.Random(seed)
        self.drift, self.jitter, self.stalls = drift, jitter, stalls
        self.speed = self.now = 0.0

    def way(self, factor: float) -> Callable[[], float]:
        def block() -> float:
            self.speed += self.draw.gauss(0, self.drift)
            took = factor * math.exp(self.speed) * (1 + self.draw.expovariate(1 / self.jitter))
            if self.draw.random() < self.stalls:
                took *= 1 + self.draw.expovariate(4)
            self.now += 1.0
            return took

        return block

    def compare(self, factor: float, rounds: int) -> list[Round]:
        return rounds_for(4 * (rounds + UNMEASURED), self.way(1.0), self.way(factor), lambda: self.now)


def slower(rounds: list[Round]) -> Found:
    return centre([one.slower for one in rounds])


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """On a machine that drifts by a twentieth a block and stalls in every fifth, with a loss that is there: about one in a hundred misses it."""
    missed = 0
    for seed in range(400):
        of = slower(Machine(seed).compare(1.02, 30))
        assert of.low <= of.median <= of.high
        missed += not of.low <= math.log(1.02) <= of.high
    assert missed <= 10


def test_a_steady_drift_is_no_loss() -> None:
    """A machine that gets slower by a twentieth with every block says nothing against either way."""
    machine = Machine(1, drift=0.0, jitter=1e-9, stalls=0.0)

    def block() -> float:
        machine.now += 1.0
        return math.exp(machine.now / 20)

    for one in rounds_for(40, block, block, lambda: machine.now):
        assert one.slower == pytest.approx(0.0, abs=1e-9)


def test_lopsided_disturbances_favour_neither_way() -> None:
    """With more rounds than any benchmark has, ways that are alike are told as such to a thousandth, and so is the control."""
    rounds = [one for seed in range(40) for one in Machine(seed).compare(1.0, 100)]
    middle = sorted(one.slower for one in rounds)[len(rounds) // 2]
    again = sorted(one.again for one in rounds)[len(rounds) // 2]
    assert abs(middle) < 0.005
    assert abs(again) < 0.01


@pytest.mark.parametrize(
    ("factor", "jitter", "says"),
    [(1.005, 0.01, "met"), (1.04, 0.01, "**not met**"), (1.02, 0.01, "undecided"), (1.005, 0.5, "undecided")],
)
def test_a_goal_is_met_or_not_or_undecided(factor: float, jitter: float, says: str) -> None:
    """A fiftieth may be lost: a two-hundredth is less, a twenty-fifth is more; the fiftieth itself, and anything in much noise, is not known."""
    machine = Machine(3, drift=jitter / 2, jitter=jitter, stalls=0.0)
    assert slower(machine.compare(factor, 60)).against(-math.log(0.98)) == says


def test_a_stall_in_one_block_moves_nothing() -> None:
    """Of forty rounds one in which a block took ten times as long leaves the centre where it was."""
    rounds = Machine(5, drift=0.0, jitter=0.01, stalls=0.0).compare(1.01, 40)
    before = slower(rounds)
    rounds[7] = Round("a", rounds[7].a, (rounds[7].b[0] * 10, rounds[7].b[1]))
    assert slower(rounds).median == pytest.approx(before.median, abs=0.001)


def test_the_order_is_abba_and_baab_in_turn() -> None:
    """Either way begins half of the rounds, ends them too, and the rounds that are not counted come first."""
    seen: list[str] = []

    def way(name: str) -> Callable[[], float]:
        def block() -> float:
            seen.append(name)
            return float(len(seen))

        return block

    rounds = rounds_for(48, way("a"), way("b"), lambda: float(len(seen)))
    assert "".join(seen) == "abbabaab" * 6
    assert rounds[0] == Round("a", (9.0, 12.0), (10.0, 11.0))
    assert rounds[1] == Round("b", (14.0, 15.0), (13.0, 16.0))
    assert len(rounds) == 10
    assert rounds[0].again > 0 > rounds[1].again  # earlier and later take turns


def test_no_fewer_rounds_than_tell_something() -> None:
    """However slow the blocks are, eight rounds are made; of seven values not even the outermost hold the centre so surely."""
    assert len(rounds_for(0, lambda: 1.0, lambda: 1.0)) == 8
    with pytest.raises(ValueError, match="8 do"):
        centre([1.0] * 7)
    assert centre(range(8)) == Found(median=3.5, low=0.0, high=7.0, rounds=8)


def test_the_ranks_are_those_of_the_tables() -> None:
    """Wilcoxon's critical values at a hundredth, two-sided, are 3 of 10, 37 of 20 and 373 of 50: the means next to them bound."""
    for count, critical in ((10, 3), (20, 37), (50, 373)):
        values = [2.0**number for number in range(count)]
        means = sorted((one + other) / 2 for at, one in enumerate(values) for other in values[at:])
        of = centre(values)
        assert (of.low, of.high) == (means[critical], means[-1 - critical])
