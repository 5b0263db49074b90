"""What `make bench-vllm` counts: whole answers of exactly the tokens that were asked for, and the loss that CPU time explains."""

from __future__ import annotations

import socket
from threading import Thread

import pytest

from benchmarks.paired import found
from benchmarks.vllm import LOSS, Load, Result, Way, line

LOAD = Load("tiny", 3, 16)


def answering(pieces: list[bytes]) -> socket.socket:
    """One end of a connection whose other end reads a request and answers so."""
    ours, theirs = socket.socketpair()

    def answer() -> None:
        with theirs:
            theirs.recv(65536)
            for piece in pieces:
                theirs.sendall(piece)
            theirs.recv(1)  # until it is closed

    Thread(target=answer, daemon=True).start()
    return ours


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = [chunk(b'data: {"usage":{"completion_tokens":16}}\n\n'), chunk(b"data: [DONE]\n\n"), b"0\r\n", b"\r\n"]


def test_a_block_is_of_whole_answers() -> None:
    """However their bytes are cut."""
    way = Way(lambda: answering([HEAD, *(bytes([byte]) for byte in b"".join(END))]), "key")
    assert 0 < way.block(LOAD) < 10


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([HEAD, chunk(b'data: {"usage":{"completion_tokens":15}}\n\n'), b"0\r\n\r\n"], ValueError),
        ([HEAD.replace(b"200", b"503"), *END], ValueError),
    ],
)
def test_anything_else_is_no_measurement(pieces: list[bytes], error: type[Exception]) -> None:
    """Fewer tokens, and an error, end it."""
    with pytest.raises(error):
        Way(lambda: answering(pieces), "key").block(LOAD)


def test_what_a_line_says() -> None:
    """The ratio with its interval and what is known of the goal; a hundredth of a core for each token is lost at most so."""
    losses = [0.001 * number for number in range(9)]
    result = Result(
        load=LOAD, direct=100, gateway=99, loss=found(losses), control=found(losses), cpu=0.0001, seconds=[]
    )
    assert result.by_cpu == pytest.approx(0.0099, abs=1e-4)
    assert max(losses) < LOSS
    assert "| **0.996** (0.992 … 1.000) | met |" in line(result)
    assert "| 100 µs | 0.990 | 9 |" in line(result)
