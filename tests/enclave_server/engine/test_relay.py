"""Streams from the engine: their events one by one, and as the relay hands them on when nobody looks inside."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from enclave_server.begun import Rest, Work
from enclave_server.engine.answer import (
    EngineAnswer,
    UpstreamError,
)
from enclave_server.engine.upstream import Upstream
from tests.enclave_server.engine.scripted import STREAM, Peer, Script, chunks, engine


async def test_stream(tmp_path: Path) -> None:
    """A stream's head is there before its first event, and each event as soon as it was written."""
    go = asyncio.Event()

    async def stream(peer: Peer, _: Script) -> None:
        await peer.request()
        await peer.write(STREAM)
        await go.wait()
        for event in (b"data: 1\n\n", b"data: 2\n\n"):
            go.clear()
            await peer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await go.wait()
        await peer.write(b"0\r\n\r\n")
        await peer.until_closed()

    async with (
        engine(tmp_path, stream) as (pool, _),
        pool.request("POST", "/v1/completions", b"{}") as answer,
    ):
        assert answer.is_stream
        seen = []
        go.set()
        while part := await answer.more():
            seen.append(part)
            go.set()
        assert seen == [b"data: 1\n\n", b"data: 2\n\n"]


async def test_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is handed on where it arrives; the task wakes only when work has to wait, and the order stays."""
    wakes, release, seen = 0, asyncio.Event(), []
    real = EngineAnswer._wait

    async def counted(self: EngineAnswer) -> Rest | None:
        nonlocal wakes
        wakes += 1
        return await real(self)

    async def stream(peer: Peer, _: Script) -> None:
        await peer.request()
        await peer.write(STREAM)
        for number in range(8):
            await asyncio.sleep(0.01)
            await peer.write(chunks(b"%d" % number))
            if number == 6:
                release.set()
        await peer.write(chunks(b"!") + b"0\r\n\r\n")
        await peer.until_closed()

    async def work(part: bytes) -> None:
        if b"3" in part:
            await release.wait()
        seen.append(part)

    async with (
        engine(tmp_path, stream) as (pool, _),
        pool.request("POST", "/v1/completions", b"{}") as answer,
    ):
        monkeypatch.setattr(EngineAnswer, "_wait", counted)
        await answer.relay(lambda part: None if part == b"1" else work(part))
    assert b"".join(seen) == b"0234567!"
    assert wakes <= 2
    assert len(seen) < 8  # what arrived meanwhile was one piece


@pytest.mark.parametrize("begun", [False, True], ids=["at once", "in its work"])
async def test_relay_fails(tmp_path: Path, begun: bool) -> None:
    """What handing on raises is raised where the task waits, and ends the request."""

    async def stream(peer: Peer, script: Script) -> None:
        await peer.request()
        await peer.write(STREAM)
        await asyncio.sleep(0.01)
        await peer.write(chunks(b"x"))
        await peer.until_closed()
        script.gone.set()

    async def work() -> None:
        raise ValueError("of the work")

    def take(_: bytes) -> Work:
        if begun:
            return work()
        raise ValueError("of the work")

    async with engine(tmp_path, stream) as (pool, script):
        with pytest.raises(ValueError, match="of the work"):
            async with pool.request("POST", "/v1/completions", b"{}") as answer:
                await answer.relay(take)
        await asyncio.wait_for(script.gone.wait(), 60)


@pytest.mark.parametrize("begun", [False, True], ids=["idle", "in its work"])
async def test_relay_cancelled(tmp_path: Path, begun: bool) -> None:
    """A task that is cancelled hands nothing on any more, and its work ends where it waits."""
    seen, ended, arrived = [], [], asyncio.Event()

    async def stream(peer: Peer, script: Script) -> None:
        await peer.request()
        await peer.write(STREAM)
        await asyncio.sleep(0.01)
        for _ in range(1000):
            if script.gone.is_set():
                break
            await peer.write(chunks(b"x"))
            await asyncio.sleep(0.001)
        await peer.until_closed()

    async def work(part: bytes) -> None:
        arrived.set()
        try:
            if begun:
                await asyncio.get_running_loop().create_future()
            seen.append(part)
        except asyncio.CancelledError:
            ended.append(part)
            raise

    async def relay(pool: Upstream) -> None:
        async with pool.request("POST", "/v1/completions", b"{}") as answer:
            await answer.relay(work)

    async with engine(tmp_path, stream) as (pool, script):
        task = asyncio.create_task(relay(pool))
        await asyncio.wait_for(arrived.wait(), 60)
        await asyncio.sleep(0.05)
        task.cancel()
        before = len(seen)
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)
        script.gone.set()
    assert len(seen) == before
    assert len(ended) == begun


async def test_relay_of_a_lost_stream(tmp_path: Path) -> None:
    """What arrived before the connection was lost is handed on, and then it is an error."""
    seen: list[bytes] = []

    async def stream(peer: Peer, _: Script) -> None:
        await peer.request()
        await peer.write(STREAM + chunks(b"0"))
        await asyncio.sleep(0.01)
        await peer.write(chunks(b"1"))

    async with engine(tmp_path, stream) as (pool, _):
        with pytest.raises(UpstreamError, match="lost"):
            async with pool.request("POST", "/v1/completions", b"{}") as answer:
                await answer.relay(seen.append)
    assert seen == [b"0", b"1"]
