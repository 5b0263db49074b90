"""Chunks that go past uvicorn's `send` are those that it would write."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from enclave_server.chunked import chunk_writer


class Transport:
    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def begun(headers: tuple[tuple[bytes, bytes], ...] = ()) -> tuple[Any, Transport]:
    """A response of uvicorn's whose head was sent."""
    transport: Any = Transport()
    cycle = RequestResponseCycle(
        scope={"method": "POST"},  # type: ignore[typeddict-item]
        transport=transport,
        flow=FlowControl(transport),
        logger=logging.getLogger(),
        access_logger=logging.getLogger(),
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    asyncio.run(cycle.send({"type": "http.response.start", "status": 200, "headers": [*headers]}))
    transport.written = b""
    return cycle, transport


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
