"""What ends a request from outside: the time, and the client."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest

from enclave_server.watch import CONNECTION, ClientGoneError, Connection, Watch


class LateError(Exception):
    """Made up."""


def nothing(_: Watch) -> None:
    """Of a client or another time is known."""


async def long(
    begin: Callable[[Watch], None] = nothing,
    *,
    seconds: float = 3600,
    error: Callable[[], Exception] = LateError,
) -> None:
    """What takes too long, watched over as `begin` says."""
    with Watch(seconds, error) as watch:
        begin(watch)
        await asyncio.sleep(5)


async def test_time_is_over() -> None:
    """The block ends at its time with its error."""
    with pytest.raises(LateError):
        await long(seconds=0.01)
    await asyncio.sleep(0)  # nothing of it is left to cancel this


@pytest.mark.parametrize(("seconds", "own"), [(0.01, 3600), (3600, 0.01)])
async def test_a_part_has_less_time(seconds: float, own: float) -> None:
    """A part of the block ends it at its own time, and never later than the block's, with its own error."""
    whole, part = partial(LateError, "whole"), partial(LateError, "part")
    with pytest.raises(LateError, match="part"), Watch(own, whole) as watch, watch.sooner(seconds, part):
        await asyncio.sleep(5)


async def test_after_a_part_all_the_time_is_left() -> None:
    """A part that ended in time does not end the block when its time would have come."""
    began = asyncio.get_running_loop().time()

    def begin(watch: Watch) -> None:
        with watch.sooner(0.01, partial(LateError, "part")):
            pass

    with pytest.raises(LateError, match="whole"):
        await long(begin, seconds=0.1, error=partial(LateError, "whole"))
    assert asyncio.get_running_loop().time() - began >= 0.1


async def test_in_time() -> None:
    """A block that ends by itself is left alone, and so is what comes after it."""
    connection = Connection(lambda: None)
    with Watch(0.01, LateError) as watch:
        watch.client({CONNECTION: connection})
    connection.end()
    await asyncio.sleep(0.03)


async def test_the_client_goes() -> None:
    """The block ends at once with ClientGoneError; reading goes on meanwhile, for else nobody would see it."""
    read_on: list[bool] = []
    connection = Connection(lambda: read_on.append(True))
    asyncio.get_running_loop().call_soon(connection.end)
    with pytest.raises(ClientGoneError):
        await long(lambda watch: watch.client({CONNECTION: connection}))
    assert read_on


async def test_the_client_has_gone_before() -> None:
    """Nothing is begun for a client that went while its body was looked at."""
    connection = Connection(lambda: None)
    connection.end()
    with pytest.raises(ClientGoneError):
        await long(lambda watch: watch.client({CONNECTION: connection}))


async def test_cancelled_by_others() -> None:
    """A server that stops is not taken for a client that goes, even when both happen at once."""
    connection = Connection(lambda: None)

    async def work() -> None:
        with Watch(3600, LateError) as watch:
            watch.client({CONNECTION: connection})
            await asyncio.sleep(5)

    for also_gone in (False, True):
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        if also_gone:
            connection.end()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_the_block_held_is_let_go() -> None:
    """A request's body is not kept by the error that ended it, until some collector of garbage comes by."""

    class Body:
        """Stands for many bytes."""

    held: list[weakref.ref[Body]] = []

    async def work() -> None:
        body = Body()
        held.append(weakref.ref(body))
        await long(seconds=0)

    gc.disable()
    try:
        with suppress(LateError):
            await work()
        assert held[0]() is None
    finally:
        gc.enable()


async def test_the_first_reason_counts() -> None:
    """What comes after the end was decided changes nothing."""
    connection = Connection(lambda: None)

    def begin(watch: Watch) -> None:
        watch.client({CONNECTION: connection})
        connection.end()
        watch._ring()

    with pytest.raises(ClientGoneError):
        await long(begin, seconds=0)
