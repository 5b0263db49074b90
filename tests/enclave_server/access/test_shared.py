"""What workers count together, and the queue before the engine that rests on it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave_server.access.admission import Admission
from enclave_server.access.shared import NamedTally, Tally
from enclave_server.errors import ApiError
from tests.processes import forked


@contextmanager
def another(work: Callable[[], object]) -> Iterator[int]:
    """A process that has done `work`, and does nothing more until it is killed."""
    done, tell = os.pipe()

    def work_and_stay() -> None:
        work()
        os.write(tell, b".")
        signal.pause()

    pid = forked(work_and_stay)
    os.close(tell)
    try:
        assert os.read(done, 1), "its work failed"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(done)


def test_all_workers_are_counted() -> None:
    """What another worker counts is in the sum; what it had under way when it died is forgotten by who takes its place."""
    tally = Tally(3, 2)

    def work() -> None:
        tally.begin(1)
        tally.add(2, 5)

    with another(work):
        assert tally.add(2, 1) == 6
        assert tally.add(1, 1) == 1
    assert tally.add(2, 0) == 6
    with another(lambda: tally.begin(1)):
        assert tally.add(2, 0) == 1
        assert tally.add(1, 0) == 1


def test_names_mean_the_same_everywhere() -> None:
    """A name has one row in all workers, whoever counts it first, and another name has another."""
    tally = NamedTally(2)

    def work() -> None:
        tally.begin(1)
        tally.add("theirs", 1)
        tally.add("both", 2)

    with another(work):
        assert tally.add("both", 1) == 3
        assert tally.add("ours", 1) == 1
        assert tally.add("theirs", 0) == 1


def test_more_names_than_rows() -> None:
    """Names without a row of their own share one: never is less counted than there is."""
    tally = NamedTally(1, rows=4)
    for number in range(20):
        assert tally.add(str(number), 1) >= 1
    assert all(tally.add(str(number), -1) >= 0 for number in range(20))
    assert all(tally.add(str(number), 0) == 0 for number in range(20))


async def test_a_place_in_another_worker() -> None:
    """A request waits while another worker has the only place, and gets it when that worker leaves or is dead."""
    admission = Admission(in_flight=1, queued=1, seconds=120, workers=2)

    def work() -> None:
        admission.begin(1)
        asyncio.run(admission.enter())

    with another(work):
        waiting = asyncio.create_task(admission.enter())
        await asyncio.sleep(0.05)
        assert (waiting.done(), admission.queued) == (False, 1)
        with pytest.raises(ApiError, match="overloaded"):
            await admission.enter()
    with another(lambda: admission.begin(1)):
        await asyncio.wait_for(waiting, 60)
    assert admission.queued == 0


async def test_one_looks_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the queue empties and fills, one look at a time is enough: waiting costs the same under any load."""
    admission, looks = Admission(in_flight=1, queued=1, seconds=120, workers=2), 0
    await admission.enter()
    for _ in range(50):
        gone = asyncio.create_task(admission.enter())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
    waiting = asyncio.create_task(admission.enter())
    give = admission._give

    def counted() -> None:
        nonlocal looks
        looks += 1
        give()

    monkeypatch.setattr(admission, "_give", counted)
    await asyncio.sleep(0.1)
    assert 1 <= looks <= 15
    admission.leave()
    await asyncio.wait_for(waiting, 60)


async def test_who_goes_away_takes_no_place() -> None:
    """A waiting request that is cancelled, also in the moment when it was given a place, leaves it to the next."""
    admission = Admission(in_flight=1, queued=3, seconds=120)
    await admission.enter()
    first, second, third = (asyncio.create_task(admission.enter()) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()
    admission.leave()
    second.cancel()
    await asyncio.wait_for(third, 60)
    assert [task.cancelled() for task in (first, second)] == [True, True]
    admission.leave()
    await asyncio.wait_for(admission.enter(), 60)


class Crowd:
    """Requests that come, end and go away."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.asked: list[asyncio.Task[None]] = []
        self.running = 0

    async def step(self, what: str) -> None:
        if what == "enter":
            self.asked.append(asyncio.create_task(self.admission.enter()))
        elif what == "cancel" and self.asked:
            self.asked.pop(0).cancel()
        elif what == "leave" and self.running:
            self.running -= 1
            self.admission.leave()
        for _ in range(3):
            await asyncio.sleep(0)
        self.running += sum(task.exception() is None for task in self.asked if task.done())
        self.asked = [task for task in self.asked if not task.done()]


@given(
    st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=60), st.integers(1, 3), st.integers(0, 3)
)
def test_bounds_hold(steps: list[str], most: int, queued: int) -> None:
    """However requests come, end and go away: never more run or wait than may, and in the end all places are free."""

    async def run() -> None:
        crowd = Crowd(Admission(in_flight=most, queued=queued, seconds=120))
        for step in [*steps, *["leave"] * len(steps)]:
            await crowd.step(step)
            assert crowd.running <= most
            assert crowd.admission.queued <= queued
        assert (crowd.running, crowd.asked) == (0, [])
        async with asyncio.timeout(60):
            for _ in range(most):
                await crowd.admission.enter()

    asyncio.run(run())
