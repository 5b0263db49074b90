"""Answers to sealed requests, chunk by chunk: how they come out, and everything that may be done to them on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.sealed import SUITES, Suite, parse_message
from attestation.sealed_answer import MAX_CHUNK_BYTES, AnswerOpener
from tests.attestation.sealing import (
    ANSWER_HEAD,
    EVERY,
    PARTS,
    exchange,
    read,
    refused,
    seal,
    sealer_of,
    unseal,
    value_or_malformed,
)


@EVERY
@pytest.mark.parametrize("step", [1, 7, 100, 100_000])
def test_an_answer_comes_out_as_it_went_in(suite: Suite, step: int) -> None:
    """However the network cuts it; the head is there with the first chunk."""
    opener, chunks = exchange(suite)
    wire, out = b"".join(chunks), b""
    for at in range(0, len(wire), step):
        out += opener.feed(wire[at : at + step])
        assert (opener.head is None) == (out == b"")
    opener.end()
    assert out == b"".join(PARTS)
    assert opener.head == ANSWER_HEAD
    assert b"data" not in wire


def test_a_chunk_comes_out_when_it_is_whole() -> None:
    """No event waits for the next one."""
    opener, chunks = exchange()
    assert opener.feed(chunks[0]) == b""
    assert [opener.feed(chunk) for chunk in chunks[1:]] == list(PARTS)


def test_events_of_about_a_length_look_the_same() -> None:
    """The length of a token is not to be seen in a stream."""
    _, chunks = exchange()
    assert {len(chunk) for chunk in chunks[1:]} == {512 + 16 + 5}


def test_large_answers_are_cut_into_chunks() -> None:
    """No chunk is larger than a reader has to hold."""
    data, opener = seal()
    body = bytes(range(256)) * 10_000
    wire = sealer_of(unseal(data)).seal(body, head=ANSWER_HEAD, last=True)
    assert len(wire) > 2 * MAX_CHUNK_BYTES
    assert opener.feed(wire) == body
    opener.end()


@pytest.mark.parametrize("step", [13, 65_536, MAX_CHUNK_BYTES + 100])
def test_large_chunks_come_in_many_reads(step: int) -> None:
    """However short these are, the work is that of the bytes and not of their square; and a read may end anywhere in a chunk."""
    data, opener = seal()
    sealer, body = sealer_of(unseal(data)), bytes(range(256)) * 4000
    wire = sealer.seal(body, head=ANSWER_HEAD) + sealer.seal(body) + sealer.seal(body, last=True)
    assert b"".join(opener.feed(wire[at : at + step]) for at in range(0, len(wire), step)) == body * 3
    opener.end()


def test_what_is_no_chunk_is_refused_again() -> None:
    """Nothing that comes after it is given out."""
    opener, chunks = exchange()
    opener.feed(chunks[0] + chunks[1])
    for more in (b"\2", *chunks[2:]):
        assert refused(opener.feed, more) is Check.SEALED_FORMAT
    assert refused(opener.end) is Check.SEALED_TRUNCATED


def test_empty_answers_and_pieces() -> None:
    """A body may have no bytes, and an answer may end with an empty piece."""
    data, opener = seal()
    sealer = sealer_of(unseal(data))
    wire = sealer.seal(b"", head=ANSWER_HEAD) + sealer.seal(b"", last=True)
    assert opener.feed(wire) == b""
    opener.end()
    assert opener.head == ANSWER_HEAD


def test_the_head_comes_once_and_first() -> None:
    """A sealer cannot be used in the wrong order."""
    sealer = sealer_of(unseal(seal()[0]))
    with pytest.raises(ValueError, match="first piece"):
        sealer.seal(b"x")
    sealer.seal(b"x", head=ANSWER_HEAD)
    with pytest.raises(ValueError, match="first piece"):
        sealer.seal(b"x", head=ANSWER_HEAD)


def test_an_opened_request_answered_twice_uses_no_nonce_twice() -> None:
    """Each answer has a random value of its own, and so a key of its own."""
    opened = unseal(seal()[0])
    one, two = (sealer_of(opened).seal(b"x", head=ANSWER_HEAD) for _ in range(2))
    assert one[:32] != two[:32]
    assert one[37:] != two[37:]


def other_answer() -> list[bytes]:
    return exchange()[1]


TABLE: dict[str, tuple[Check, Callable[[list[bytes]], list[bytes]]]] = {
    "the first chunk dropped": (Check.SEALED_ORDER, lambda c: [c[0], *c[2:]]),
    "a chunk dropped": (Check.SEALED_ORDER, lambda c: [*c[:2], *c[3:]]),
    "two chunks in another order": (Check.SEALED_ORDER, lambda c: [*c[:2], c[3], c[2], c[4]]),
    "a chunk twice": (Check.SEALED_ORDER, lambda c: [*c[:3], *c[2:]]),
    "the last chunk twice": (Check.SEALED_ORDER, lambda c: [*c, c[4]]),
    "the last chunk early": (Check.SEALED_ORDER, lambda c: [*c[:2], c[4]]),
    "bytes after the last chunk": (Check.SEALED_ORDER, lambda c: [*c, b"\0"]),
    "the last chunk dropped": (Check.SEALED_TRUNCATED, lambda c: c[:4]),
    "the last mark moved": (Check.SEALED_TRUNCATED, lambda c: [*c[:2], b"\1" + c[2][1:]]),
    "the last mark taken off": (Check.SEALED_TRUNCATED, lambda c: [*c[:4], b"\0" + c[4][1:]]),
    "a chunk of another answer": (Check.SEALED_OPEN, lambda c: [*c[:2], other_answer()[2], *c[3:]]),
    "another answer": (Check.SEALED_OPEN, lambda c: other_answer()),
    "another random value": (Check.SEALED_OPEN, lambda c: [other_answer()[0], *c[1:]]),
    "no answer": (Check.SEALED_TRUNCATED, lambda c: []),
    "no chunk": (Check.SEALED_TRUNCATED, lambda c: c[:1]),
    "an answer that is not sealed": (Check.SEALED_FORMAT, lambda c: [c[0], b'{"choices": []}' * 3]),
}


@EVERY
@pytest.mark.parametrize("case", TABLE)
def test_tampering_with_an_answer(case: str, suite: Suite) -> None:
    """Whatever is done to the chunks, the client knows, and says which."""
    check, change = TABLE[case]
    opener, chunks = exchange(suite)
    assert refused(read, opener, change(chunks)) is check


def test_an_answer_cut_anywhere_is_known_to_be_cut() -> None:
    """At every byte, the boundaries of chunks among them."""
    opener, chunks = exchange()
    wire = b"".join(chunks)
    for length in range(len(wire)):
        fresh = AnswerOpener(opener._secret, opener._enc)
        assert refused(read, fresh, [wire[:length]]) is Check.SEALED_TRUNCATED, length


def test_every_changed_byte_of_an_answer_is_refused() -> None:
    """Nothing of a changed chunk is given out."""
    opener, chunks = exchange()
    wire = b"".join(chunks)
    for at in range(len(wire)):
        changed = wire[:at] + bytes([wire[at] ^ (1 << at % 8)]) + wire[at + 1 :]
        fresh = AnswerOpener(opener._secret, opener._enc)
        assert refused(read, fresh, [changed]).startswith("sealed."), at


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(0, 2**32 - 1), st.booleans())
def test_any_bytes_as_an_answer(pieces: list[bytes], size: int, last: bool) -> None:
    """A value, or an error of ours."""
    opener = AnswerOpener(bytes(32), bytes(32))
    value_or_malformed(read, opener, pieces)
    framed = [bytes(32), bytes([last]), size.to_bytes(4, "big"), *pieces]
    value_or_malformed(read, AnswerOpener(bytes(32), bytes(32)), framed)


@given(st.binary(max_size=3000), st.sampled_from(sorted(SUITES)))
@settings(max_examples=50, deadline=None)
def test_any_body_comes_out_as_it_went_in(body: bytes, number: bytes) -> None:
    """Whatever its bytes are."""
    data, opener = seal(body, SUITES[number])
    opened = unseal(data)
    assert parse_message(opened.content).body == body
    assert opener.feed(sealer_of(opened).seal(body, head=ANSWER_HEAD, last=True)) == body
