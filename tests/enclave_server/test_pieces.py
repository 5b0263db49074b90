"""Bytes that arrive in pieces: what comes out is all of them, and none is kept meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from enclave_server.engine.answer import EngineAnswer
from enclave_server.incoming import read_body
from enclave_server.pieces import joined


class Piece(bytes):
    """One that is counted for as long as anybody holds it."""

    held = 0

    def __init__(self, _: bytes) -> None:
        Piece.held += 1

    def __del__(self) -> None:
        Piece.held -= 1


@given(st.lists(st.binary()))
def test_all_of_them_in_their_order(pieces: list[bytes]) -> None:
    """Whatever their number and sizes, empty ones too."""
    whole: bytes | bytearray = b""
    for piece in pieces:
        whole = joined(whole, piece)
    assert bytes(whole) == b"".join(pieces)


def test_one_piece_is_not_copied() -> None:
    """Nearly all requests and answers come in one."""
    assert bytes(joined(b"", one := b"all of it")) is one


async def test_no_piece_of_a_request_is_kept() -> None:
    """But for the first, until the second is there: else they stay in the heap between what lives longer."""
    left = [Piece(b"x" * 1000) for _ in range(20)]
    most: list[int] = []

    async def receive() -> Mapping[str, Any]:
        most.append(Piece.held - len(left))
        return {"type": "http.request", "body": left.pop(), "more_body": bool(left)}

    assert await read_body(receive, limit=20_000) == b"x" * 20_000
    assert max(most) <= 2
    assert Piece.held == 0


async def test_no_piece_of_an_answer_is_kept() -> None:
    """The same on the engine's side."""
    left = [Piece(b"x" * 1000) for _ in range(20)]
    most: list[int] = []

    class Answer(EngineAnswer):
        async def more(self) -> bytes:
            most.append(Piece.held - len(left))
            return left.pop() if left else b""

    assert await Answer(1, lambda _: None).read(20_000) == b"x" * 20_000
    assert max(most) <= 2
    assert Piece.held == 0
