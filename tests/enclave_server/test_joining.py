"""The head of an answer and what follows it: one write where both are there, and nothing that waits."""

from __future__ import annotations

import asyncio
from typing import cast

from enclave_server.server import Joining

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"{}"


class Wire:
    """What a transport was told."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.joining = Joining(cast(asyncio.Transport, self), asyncio.get_running_loop())

    def write(self, data: bytes) -> None:
        self.said.append(data)

    def close(self) -> None:
        self.said.append(b"closed")

    def abort(self) -> None:
        self.said.append(b"aborted")

    def is_closing(self) -> bool:
        return bool(self.said) and self.said[-1] in {b"closed", b"aborted"}

    def get_write_buffer_size(self) -> int:
        return 7


async def test_a_whole_answer_is_one_write() -> None:
    """Head and body leave together, at once, and the same bytes as one by one; what comes later leaves as it comes."""
    wire = Wire()
    for part in (HEAD, BODY, b"more"):
        wire.joining.write(part)
    assert wire.said == [HEAD + BODY, b"more"]
    await asyncio.sleep(0)
    assert wire.said == [HEAD + BODY, b"more"]


async def test_a_head_alone_does_not_wait() -> None:
    """Where nothing follows at once, as in a stream, the head leaves in the same turn of the loop."""
    wire = Wire()
    wire.joining.write(HEAD)
    assert wire.joining.get_write_buffer_size() == 7 + len(HEAD)
    await asyncio.sleep(0)
    wire.joining.write(BODY)
    assert wire.said == [HEAD, BODY]
    assert wire.joining.get_write_buffer_size() == 7


async def test_a_head_before_the_end() -> None:
    """A connection that is closed says first what it had to say; one that is aborted does not."""
    wire, lost = Wire(), Wire()
    wire.joining.write(HEAD)
    wire.joining.close()
    assert wire.said == [HEAD, b"closed"]
    assert wire.joining.is_closing()
    lost.joining.write(HEAD)
    lost.joining.abort()
    await asyncio.sleep(0)
    assert lost.said == [b"aborted"]
