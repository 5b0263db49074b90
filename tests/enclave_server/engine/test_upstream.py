"""The pool of connections to the engine, against an engine that writes exactly the bytes of each test."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from enclave_server.begun import Rest
from enclave_server.engine import answer as module
from enclave_server.engine.answer import (
    EngineAnswer,
    TooLongError,
    TooSlowError,
    UnreachableError,
    UpstreamError,
)
from enclave_server.engine.upstream import Upstream
from tests.enclave_server.engine.scripted import CLOSE, PLAIN, STREAM, Peer, Script, ask, engine, well


async def test_kept_and_plain(tmp_path: Path) -> None:
    """Requests one after the other share a connection; what is sent is the route, the body and nothing else."""
    async with engine(tmp_path, well) as (pool, script):
        for _ in range(5):
            assert await ask(pool) == b"{}"
        async with pool.request("GET", "/health") as answer:  # left without reading
            assert answer.status == 200
        assert await ask(pool, b"x" * 100_000) == b"{}"
    assert script.connections == 1
    assert script.requests[0] == (
        b"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert script.requests[5] == b"GET /health HTTP/1.1\r\nHost: engine\r\n\r\n"


async def test_at_once(tmp_path: Path) -> None:
    """Requests at the same time have a connection each, and answers do not mix."""

    async def echo(peer: Peer, _: Script) -> None:
        while True:
            body = (await peer.request()).rpartition(b"\r\n\r\n")[2]
            await peer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    async with engine(tmp_path, echo) as (pool, script):
        for _ in range(3):
            bodies = [b"%d" % number * 50 for number in range(10)]
            assert await asyncio.gather(*(ask(pool, body) for body in bodies)) == bodies
    assert script.connections == 10


async def test_woken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many pieces a plain answer comes in, its reader is woken once; a stream's for each piece."""
    wakes = 0
    real = EngineAnswer._wait

    async def counted(self: EngineAnswer) -> Rest | None:
        nonlocal wakes
        wakes += 1
        return await real(self)

    monkeypatch.setattr(EngineAnswer, "_wait", counted)

    async def slowly(peer: Peer, _: Script) -> None:
        await peer.request()
        for byte in PLAIN:
            await peer.write(bytes([byte]))
            await asyncio.sleep(0)
        await peer.until_closed()

    async with engine(tmp_path, slowly) as (pool, _):
        assert await ask(pool) == b"{}"
    assert wakes == 1


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine closed at once may be noticed late by a process that had to wait for a processor."""
    monkeypatch.setattr(module, "_STALE_SECONDS", 60)


@pytest.mark.parametrize("close", ["at once", "announced"])
async def test_kept_connection_that_was_closed(tmp_path: Path, patient: None, close: str) -> None:
    """A kept connection that the engine has closed meanwhile is not used, or the request is sent once more."""

    async def once(peer: Peer, script: Script) -> None:
        script.requests.append(await peer.request())
        await peer.write(PLAIN if close == "at once" else CLOSE)

    async with engine(tmp_path, once) as (pool, script):
        for _ in range(4):
            assert await ask(pool) == b"{}"
    assert len(script.requests) == script.connections == 4


async def test_sent_again_only_before_an_answer(tmp_path: Path, patient: None) -> None:
    """A reused connection that dies without a byte is tried once more on a new one; one that died of the request is not."""

    async def dies_on_second(peer: Peer, script: Script) -> None:
        script.requests.append(await peer.request())
        await peer.write(PLAIN)
        script.requests.append(await peer.request())  # and closes

    async def dies_in_answer(peer: Peer, script: Script) -> None:
        script.requests.append(await peer.request())
        await peer.write(PLAIN)
        script.requests.append(await peer.request())
        await peer.write(PLAIN[:20])

    async with engine(tmp_path, dies_on_second) as (pool, script):
        assert await ask(pool) == await ask(pool) == b"{}"
    assert (len(script.requests), script.connections) == (3, 2)
    async with engine(tmp_path, dies_in_answer) as (pool, script):
        await ask(pool)
        with pytest.raises(UpstreamError, match="lost"):
            await ask(pool)
    assert (len(script.requests), script.connections) == (2, 1)


async def test_not_sent_again_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that worked on a request before it died does not get the same request again."""
    monkeypatch.setattr(module, "_STALE_SECONDS", 0.05)

    async def works_then_dies(peer: Peer, script: Script) -> None:
        script.requests.append(await peer.request())
        await peer.write(PLAIN)
        script.requests.append(await peer.request())
        await asyncio.sleep(0.2)

    async with engine(tmp_path, works_then_dies) as (pool, script):
        await ask(pool)
        with pytest.raises(UpstreamError, match="lost"):
            await ask(pool)
    assert len(script.requests) == 2


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [
        (b"", "lost"),
        (PLAIN[:-1], "lost"),
        (STREAM.replace(b"text/event-stream", b"text/plain") + b"2\r\n{}\r\n", "lost"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", "lost"),
        (b"SSH-2.0-no\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, "not HTTP"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "not HTTP"),
        (PLAIN.replace(b"200", b"600"), "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000, "without an end"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9_000, "without an end"),
    ],
    ids=[
        "nothing",
        "cut",
        "cut chunks",
        "no length",
        "ssh",
        "length",
        "100",
        "101",
        "600",
        "long header",
        "many headers",
    ],
)
async def test_bad_answers(tmp_path: Path, bytes_: bytes, words: str) -> None:
    """What is no whole HTTP answer is an error, never a short answer."""

    async def bad(peer: Peer, _: Script) -> None:
        await peer.request()
        await peer.write(bytes_)
        if words != "lost":
            await peer.until_closed()

    async with engine(tmp_path, bad) as (pool, _):
        with pytest.raises(UpstreamError, match=words):
            await ask(pool)


@pytest.mark.parametrize("late", [False, True], ids=["with the first", "while idle"])
async def test_answers_nobody_asked_for(tmp_path: Path, late: bool) -> None:
    """A second answer to one request never becomes the answer to the next."""

    async def twice(peer: Peer, script: Script) -> None:
        script.requests.append(await peer.request())
        await peer.write(PLAIN if late else PLAIN + PLAIN.replace(b"{}", b"[]"))
        if late:
            await asyncio.sleep(0.05)
            await peer.write(PLAIN.replace(b"{}", b"[]"))
        await peer.until_closed()

    async with engine(tmp_path, twice) as (pool, script):
        for _ in range(2):
            assert await ask(pool) == b"{}"
            async with asyncio.timeout(60):
                while pool._idle:  # noqa: ASYNC110 - until the second answer has arrived
                    await asyncio.sleep(0.01)
    assert script.connections == 2


async def test_too_slow(tmp_path: Path) -> None:
    """Silence for too long ends a request; an answer that goes on does not, however long it takes."""

    trickles = True

    async def trickle(peer: Peer, script: Script) -> None:
        await peer.request()
        if trickles:
            for byte in PLAIN:
                await peer.write(bytes([byte]))
                await asyncio.sleep(0.014)
        await peer.until_closed()
        script.gone.set()

    async with engine(tmp_path, trickle, read_seconds=0.6) as (pool, script):
        answer = b""
        for _ in range(20):  # a process that has to wait for a processor is silent, too
            with suppress(TooSlowError):
                answer = await ask(pool)
                break
        assert answer == b"{}"
        trickles = False
        for kept in list(pool._idle):
            kept.close()
        script.gone.clear()
        with pytest.raises(TooSlowError):
            await ask(pool)
        await asyncio.wait_for(script.gone.wait(), 60)


async def test_leaving_closes(tmp_path: Path) -> None:
    """Leaving before the end, by choice or by cancellation, closes the connection."""

    asked = asyncio.Event()

    async def endless(peer: Peer, script: Script) -> None:
        await peer.request()
        asked.set()
        if script.connections == 1:
            await peer.write(STREAM + b"1\r\nx\r\n")
        await peer.until_closed()
        script.gone.set()

    async with engine(tmp_path, endless) as (pool, script):
        async with pool.request("POST", "/v1/completions", b"{}") as answer:
            assert await answer.more() == b"x"
        await asyncio.wait_for(script.gone.wait(), 60)
        script.gone.clear()
        asked.clear()
        waiting = asyncio.create_task(ask(pool))
        await asyncio.wait_for(asked.wait(), 60)
        waiting.cancel()
        await asyncio.wait_for(script.gone.wait(), 60)
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert script.connections == 2


async def test_slow_reader(tmp_path: Path) -> None:
    """A reader that does not take what arrives makes the engine wait; nothing is lost, and memory stays bounded."""
    total, written = 8 << 20, 0

    async def much(peer: Peer, _: Script) -> None:
        nonlocal written
        await peer.request()
        await peer.write(STREAM)
        while written < total:
            await peer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            written += 65536
        await peer.write(b"0\r\n\r\n")
        await peer.until_closed()

    async with engine(tmp_path, much) as (pool, _), pool.request("POST", "/v1/x", b"{}") as answer:
        await asyncio.sleep(0.2)
        assert written < total // 4
        size = 0
        while part := await answer.more():
            size += len(part)
            assert len(part) < 1 << 20
        assert size == total


async def test_too_long(tmp_path: Path) -> None:
    """A plain answer over the limit is refused while it arrives."""

    async def long(peer: Peer, script: Script) -> None:
        await peer.request()
        await peer.write(PLAIN.replace(b"length: 2", b"length: 99999999") + b"x" * 9_999_999)
        await peer.until_closed()
        script.gone.set()

    async with engine(tmp_path, long) as (pool, _):
        with pytest.raises(TooLongError):
            await ask(pool)


async def test_unreachable(tmp_path: Path) -> None:
    """Without an engine there is a reason of its own."""
    async with Upstream(tmp_path / "nobody", read_seconds=1) as pool:
        with pytest.raises(UnreachableError):
            await ask(pool)
