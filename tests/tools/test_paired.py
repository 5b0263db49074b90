"""What a benchmark says of a goal: it can be met, not met and undecided, and noise alone meets none."""

from __future__ import annotations

import random
import time

import pytest

from benchmarks.paired import Found, added, found, in_turn, rounds_of


def test_the_interval_has_the_median_as_often_as_it_says() -> None:
    """Whatever the distribution: of a thousand samples about ten miss it."""
    draw = random.Random(7)
    missed = 0
    for _ in range(1000):
        of = found([draw.expovariate(1.0) for _ in range(40)])
        assert of.low <= of.median <= of.high
        missed += not of.low <= 0.6931 <= of.high
    assert missed < 25


def test_too_few_rounds_tell_nothing() -> None:
    """Of seven values not even the outermost hold the median so surely."""
    with pytest.raises(ValueError, match="eight"):
        found([1.0] * 7)
    assert found([1.0] * 8).rounds == 8


def test_a_goal_is_decided_by_the_whole_interval() -> None:
    """Below it, above it, and neither."""
    of = Found(median=5.0, low=4.0, high=6.0, rounds=9, base=100.0)
    assert [of.against(limit) for limit in (6.0, 5.0, 3.9)] == ["met", "undecided", "**not met**"]
    thousand = of.times(1000)
    assert (thousand.low, thousand.base, thousand.rounds) == (4000.0, 100_000.0, 9)


def test_every_way_is_first_and_follows_every_other() -> None:
    """So that none has the better place."""
    orders = [in_turn("abc", number) for number in range(6)]
    assert sorted(order[0] for order in orders) == list("aabbcc")
    pairs = [order[at] + order[at + 1] for order in orders for at in (0, 1)]
    assert {pair: pairs.count(pair) for pair in pairs} == dict.fromkeys(
        ("ab", "ba", "bc", "cb", "ca", "ac"), 2
    )


def test_a_cost_that_is_there_does_not_meet_a_goal_below_it() -> None:
    """Work of a millisecond more is seen, and not as half of one."""

    def busy(seconds: float) -> float:
        before = time.thread_time()
        while time.thread_time() - before < seconds:
            pass
        return time.thread_time() - before

    rounds = rounds_of({"bare": lambda: busy(0.001), "ours": lambda: busy(0.002)}, 20)
    cost = added(rounds, "bare")["ours"]
    assert cost.against(0.0005) == "**not met**"
    assert cost.against(0.1) == "met"
