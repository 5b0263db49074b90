"""What goes past uvicorn's `send` is what it would write."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from enclave_server.shortcuts import BodyThatIsHere, arrived_body, chunk_writer, write_whole


class Transport:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


def asked(*, method: str = "POST", keep_alive: bool = True) -> tuple[Any, Transport]:
    """uvicorn's side of a request that has no answer yet; it notes on itself whether it was told of the answer's end."""
    transport: Any = Transport()
    ends: list[None] = []
    cycle = RequestResponseCycle(
        scope={"method": method},  # type: ignore[typeddict-item]
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger(),
        access_logger=logging.getLogger(),
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=lambda: ends.append(None),
    )
    cycle.ends = ends  # type: ignore[attr-defined]
    return cycle, transport


def begun(headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[Any, Transport]:
    """A response of uvicorn's whose head was sent."""
    cycle, transport = asked()
    asyncio.run(cycle.send({"type": "http.response.start", "status": 200, "headers": [*headers]}))
    transport.written = b""
    return cycle, transport


async def in_two(cycle: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """A whole answer as ASGI says it."""
    await cycle.send({"type": "http.response.start", "status": status, "headers": headers})
    await cycle.send({"type": "http.response.body", "body": body})


async def test_a_body_that_is_here() -> None:
    """It is what `receive` would give, is held no longer, and `receive` waits for what comes next as after it."""
    (one, _), (other, _) = asked(), asked()
    for cycle in (one, other):
        cycle.body += b'{"a":1}'
        cycle.more_body = False
        cycle.message_event.set()
    message = await other.receive()
    assert arrived_body(one.receive) == message["body"] == b'{"a":1}'
    for cycle in (one, other):
        assert not cycle.body
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(cycle.receive(), 0.01)
        cycle.disconnected = True
        cycle.message_event.set()
        assert await cycle.receive() == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "what",
    [
        {"more_body": True},
        {"disconnected": True},
        {"response_complete": True},
        {"waiting_for_100_continue": True},
    ],
)
def test_a_body_to_ask_for(what: dict[str, bool]) -> None:
    """One that goes on, or that the client waits to be asked for, or of a request that is over, is left to `receive`."""
    cycle, _ = asked()
    cycle.body += b"{"
    for name, value in {"more_body": False, **what}.items():
        setattr(cycle, name, value)
    assert arrived_body(cycle.receive) is None
    assert cycle.body == b"{"

    async def around() -> Any:
        return await cycle.receive()

    assert arrived_body(around) is None


async def test_a_body_that_was_inside() -> None:
    """It is taken at once or received, once; what comes after it is the connection's."""
    gone = {"type": "http.disconnect"}

    async def connection() -> dict[str, str]:
        return gone

    taken, received = BodyThatIsHere(b"{}", connection), BodyThatIsHere(b"{}", connection)
    assert arrived_body(taken) == b"{}"
    assert await received() == {"type": "http.request", "body": b"{}", "more_body": False}
    for receive in (taken, received):
        assert arrived_body(receive) is None
        assert await receive() == gone


def test_the_same_bytes() -> None:
    """Of any length, none included, which would end the body."""
    for length in (1, 9, 16, 230, 70_000, 0):
        data = b"x" * length
        (one, short), (other, long) = begun(), begun()
        write = chunk_writer(one.send)
        assert write is not None
        assert write(data)
        asyncio.run(other.send({"type": "http.response.body", "body": data, "more_body": True}))
        assert short.written == long.written


def test_waits_and_goes() -> None:
    """Nothing is written to a client that is behind, which is said, nor to one that has gone, as uvicorn does too."""
    cycle, transport = begun()
    write = chunk_writer(cycle.send)
    assert write is not None
    cycle.flow.pause_writing()
    assert not write(b"data: {}\n\n")
    cycle.flow.resume_writing()
    cycle.disconnected = True
    assert write(b"data: {}\n\n")
    assert not transport.written


def test_only_uvicorns_own() -> None:
    """A `send` of anybody else's, also around uvicorn's, has no short way; nor has an answer of a known length."""
    cycle, _ = begun()

    async def around(message: Any) -> None:
        await cycle.send(message)

    assert chunk_writer(around) is None
    assert chunk_writer(begun(((b"content-length", b"2"),))[0].send) is None


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("body", [b"", b'{"a":1}', b"x" * 70_000])
@pytest.mark.parametrize("status", [200, 404, 503])
def test_the_same_whole_answer(status: int, body: bytes, keep_alive: bool) -> None:
    """The bytes of uvicorn's head and body, and its state after them: of the answer, of the request's body, of the connection."""
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-a", b"b, c"),
    ]
    (one, short), (other, long) = asked(keep_alive=keep_alive), asked(keep_alive=keep_alive)
    assert write_whole(one.send, status, headers, body)
    asyncio.run(in_two(other, status, headers, body))
    assert short.written == long.written
    assert short.closed == long.closed == (not keep_alive)
    for cycle in (one, other):
        assert cycle.response_started
        assert cycle.response_complete
        assert cycle.message_event.is_set()
        assert cycle.ends == [None]


def test_no_short_way_for_a_whole_answer() -> None:
    """Where `send` would wait, or has the answer changed or refused, it is left to `send`, and nothing was written."""
    length = (b"content-length", b"2")
    behind, head, started = asked()[0], asked(method="HEAD")[0], begun()[0]
    behind.flow.pause_writing()
    for cycle in (behind, head, started):
        assert not write_whole(cycle.send, 200, [length], b"{}")
        assert not cycle.transport.written

    async def around(message: Any) -> None:
        raise AssertionError

    assert not write_whole(around, 200, [length], b"{}")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b"])
def test_a_header_that_would_be_two(value: bytes) -> None:
    """It is left to `send`, which refuses it."""
    cycle, transport = asked()
    headers = [(b"content-length", b"2"), (b"content-type", value)]
    assert not write_whole(cycle.send, 200, headers, b"{}")
    assert not transport.written
    with pytest.raises(RuntimeError):
        asyncio.run(in_two(cycle, 200, headers, b"{}"))


def test_nobody_is_there() -> None:
    """For a client that has gone nothing is written, and nothing is waited for."""
    cycle, transport = asked()
    cycle.disconnected = True
    assert write_whole(cycle.send, 200, [(b"content-length", b"2")], b"{}")
    assert not transport.written
