"""Work begun outside of a task, and ended in one."""

from __future__ import annotations

import asyncio

import pytest

from enclave_server.begun import begin


async def test_nothing_to_wait_for() -> None:
    """Work that does not wait is over at once; what it raises is raised there."""
    done = []

    async def work(error: bool) -> None:
        done.append(error)
        if error:
            raise ValueError("of the work")

    assert begin(work(False)) is None
    with pytest.raises(ValueError, match="of the work"):
        begin(work(True))
    assert done == [False, True]


async def test_waits() -> None:
    """Work that waits, also more than once, goes on where it stood, with what it waited for."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    seen = []

    async def work() -> None:
        seen.append(await first)
        await asyncio.sleep(0)
        seen.append(await second)

    rest = begin(work())
    assert rest is not None
    loop.call_later(0.01, first.set_result, 1)
    loop.call_later(0.02, second.set_exception, OSError("lost"))
    with pytest.raises(OSError, match="lost"):
        await rest
    assert seen == [1]


async def test_cancelled() -> None:
    """Cancelling the task that does the rest cancels the work where it waits, first or later."""
    ended = []

    async def work(before: int) -> None:
        try:
            for _ in range(before):
                await asyncio.sleep(0)
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append(before)
            raise

    async def finish(before: int) -> None:
        if (rest := begin(work(before))) is not None:
            await rest

    for before in (0, 1, 2):
        task = asyncio.create_task(finish(before))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert ended == [0, 1, 2]


async def test_dropped() -> None:
    """The rest that nobody does ends the work where it stands."""
    ended = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    rest = begin(work())
    assert rest is not None
    del rest
    assert ended == [True]
