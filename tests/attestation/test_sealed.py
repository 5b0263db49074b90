"""Sealed exchanges as bytes: both directions, both suites, and everything that may be done to them on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError
from attestation.sealed import (
    MAX_CHUNK_BYTES,
    MAX_CLOCK_SKEW,
    SUITES,
    X25519,
    X_WING,
    AnswerOpener,
    AnswerSealer,
    Opened,
    SealingKeys,
    Suite,
    check_time,
    max_request_bytes,
    open_request,
    parse_envelope,
    parse_message,
    seal_request,
)
from attestation.sealed_head import (
    OF_THE_CONNECTION,
    RequestHead,
    ResponseHead,
    parse_request_head,
    parse_response_head,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PRIVATE, STRANGER = SealingKeys.generate(), SealingKeys.generate()
KEYS = Keys(
    receipt_ed25519=bytes(32),
    tls_spki_sha256=bytes(32),
    sealing_x_wing=PRIVATE.public_x_wing,
    sealing_x25519=PRIVATE.public_x25519,
)
STATEMENT = b"\x0a" * 32
HEAD = RequestHead(
    method="POST",
    target="/v1/chat/completions?a=b",
    headers=(("authorization", "Bearer secret-key"), ("x-name", "größe")),
)
BODY = b'{"messages":"the secret prompt"}'
ANSWER_HEAD = ResponseHead(status=200, headers=(("content-type", "text/event-stream"),))
PARTS = (b"data: one\n\n", b"data: two\n\n", b"data: three\n\n", b"data: [DONE]\n\n")
BOTH = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


def seal(body: bytes = BODY, suite: Suite = X_WING, head: RequestHead = HEAD) -> tuple[bytes, AnswerOpener]:
    return seal_request(head, body, keys=KEYS, statement=STATEMENT, now=NOW, suite=suite)


def unseal(data: bytes, keys: SealingKeys = PRIVATE) -> Opened:
    return open_request(parse_envelope(data), keys)


def exchange(suite: Suite = X_WING) -> tuple[AnswerOpener, list[bytes]]:
    """What opens an answer, and the answer: its random value, and one chunk for each of PARTS."""
    data, opener = seal(suite=suite)
    sealer = AnswerSealer(unseal(data))
    first = sealer.seal(PARTS[0], head=ANSWER_HEAD)
    rest = [sealer.seal(part, last=part is PARTS[-1]) for part in PARTS[1:]]
    return opener, [first[:32], first[32:], *rest]


def refused(call: Callable[..., object], *args: Any) -> Check:
    with pytest.raises(AttestationError) as caught:
        call(*args)
    return caught.value.check


# ------------------------------------------------------------------------------------------------------- requests


@BOTH
def test_a_request_comes_out_as_it_went_in(suite: Suite) -> None:
    """Method, target, headers and body; the statement and the suite stand outside, and nothing else does."""
    data, _ = seal(suite=suite)
    envelope = parse_envelope(data)
    assert (envelope.suite, envelope.statement) == (suite, STATEMENT)
    message = parse_message(open_request(envelope, PRIVATE).content)
    assert (message.head, message.body, message.time) == (HEAD, BODY, int(NOW.timestamp()))
    for secret in (b"POST", b"/v1", b"secret", b"authorization", b"messages"):
        assert secret not in data


@BOTH
def test_no_two_are_alike(suite: Suite) -> None:
    """The same request twice has another encapsulated key and another ciphertext."""
    one, two = parse_envelope(seal(suite=suite)[0]), parse_envelope(seal(suite=suite)[0])
    assert one.enc != two.enc
    assert one.ciphertext != two.ciphertext


def test_the_lengths_of_requests_are_those_of_buckets() -> None:
    """Bodies of up to some 800 bytes look the same; longer ones show a power of two, then a multiple of 64 KiB."""

    def padded(body: int) -> int:
        return len(parse_envelope(seal(bytes(body))[0]).ciphertext) - 16

    assert {padded(n) for n in (0, 1, 100, 800)} == {1024}
    assert {padded(n) for n in (1100, 1500, 1800)} == {2048}
    assert padded(40_000) == 65_536
    assert padded(70_000) == 131_072
    assert padded(135_000) == 196_608
    assert len(seal(bytes(5000))[0]) <= max_request_bytes(5000)


def test_the_longest_request_fits() -> None:
    """`max_request_bytes` leaves room for the largest head."""
    head = replace(HEAD, headers=tuple(("x", "y" * 1000) for _ in range(63)))
    assert len(seal(bytes(100_000), head=head)[0]) <= max_request_bytes(100_000)


@BOTH
def test_every_changed_byte_of_a_request_is_refused(suite: Suite) -> None:
    """Version, suite, statement, encapsulated key and ciphertext are all bound together."""
    data, _ = seal(suite=suite)
    seen = set()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        seen.add(refused(unseal, changed))
    assert seen == {Check.SEALED_FORMAT, Check.SEALED_SUITE, Check.SEALED_OPEN}


@BOTH
def test_every_cut_of_a_request_is_refused(suite: Suite) -> None:
    """A request is whole or nothing."""
    data, _ = seal(suite=suite)
    for length in range(len(data)):
        assert refused(unseal, data[:length]) in {Check.SEALED_FORMAT, Check.SEALED_OPEN}
    assert refused(unseal, data + b"\0") is Check.SEALED_OPEN


def test_another_key_opens_nothing() -> None:
    """Another enclave, or another boot of the same, cannot read it."""
    assert refused(unseal, seal()[0], STRANGER) is Check.SEALED_OPEN


def test_an_unknown_suite_is_refused_by_name() -> None:
    """A weaker AEAD is not a matter of negotiation."""
    data, _ = seal()
    weaker = data[:5] + b"\x00\x01" + data[7:]
    assert refused(parse_envelope, weaker) is Check.SEALED_SUITE


def test_a_downgraded_suite_does_not_open() -> None:
    """A request sealed with X-Wing is none of X25519, whoever rewrites its suite."""
    data, _ = seal()
    assert refused(unseal, data[:1] + X25519.number + data[7:]) is Check.SEALED_OPEN


def test_the_statement_is_bound() -> None:
    """The same key under another statement is another key."""
    data, _ = seal()
    assert refused(unseal, data[:7] + b"\x0b" * 32 + data[39:]) is Check.SEALED_OPEN


@BOTH
def test_a_key_that_is_none_is_refused(suite: Suite) -> None:
    """A verified statement with a broken key is not sealed to."""
    broken = replace(KEYS, sealing_x_wing=b"\xff" * 1216, sealing_x25519=bytes(32))
    with pytest.raises(MalformedError) as caught:
        seal_request(HEAD, BODY, keys=broken, statement=STATEMENT, now=NOW, suite=suite)
    assert caught.value.check is Check.SEALED_KEY


@pytest.mark.parametrize("late", [-MAX_CLOCK_SKEW - 1, MAX_CLOCK_SKEW + 1])
def test_a_request_has_its_time(late: int) -> None:
    """It is good for a few minutes around its own time; a recorded one is not good for long."""
    message = parse_message(unseal(seal()[0]).content)
    check_time(message, NOW + timedelta(seconds=MAX_CLOCK_SKEW))
    assert refused(check_time, message, NOW + timedelta(seconds=late)) is Check.SEALED_TIME


def content(head: bytes, rest: bytes = b"") -> bytes:
    return bytes(8) + len(head).to_bytes(4, "big") + head + bytes(4) + rest


def test_nothing_but_zeros_follows_a_body() -> None:
    """Padding carries nothing."""
    head = b'{"method":"GET","target":"/v1","headers":[]}'
    assert parse_message(content(head, bytes(9))).body == b""
    assert refused(parse_message, content(head, b"\0\1")) is Check.SEALED_FORMAT


HEADS: dict[str, dict[str, Any]] = {
    "a method in lower case": {"method": "get"},
    "a target that is a URL": {"target": "https://elsewhere/v1"},
    "a target with a space": {"target": "/v1 HTTP/1.1"},
    "a target with a fragment": {"target": "/v1#x"},
    "a header in upper case": {"headers": [["X-Name", "v"]]},
    "a header with a line break": {"headers": [["x-name", "v\r\nx-other: w"]]},
    "a header with a bare line feed": {"headers": [["x-name", "v\nw"]]},
    "a header without a name": {"headers": [["", "v"]]},
    "a name with a line feed": {"headers": [["x\nname", "v"]]},
    "a header that is a text": {"headers": ["ab"]},
    "a header of a number": {"headers": [["x-name", 1]]},
    "a header of one part": {"headers": [["x-name"]]},
    "headers that are an object": {"headers": {"x": "y"}},
    "a member more": {"status": 200},
    "a number": {"method": 1},
    **{f"{name} inside": {"headers": [[name, "1"]]} for name in sorted(OF_THE_CONNECTION)},
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_are_read_strictly(case: str) -> None:
    """What HTTP would not let through, or what says where a body ends, is no part of a head."""
    head = {"method": "GET", "target": "/v1", "headers": [], **HEADS[case]}
    with pytest.raises(MalformedError):
        parse_request_head(json.dumps(head).encode(), limit=1000)


@pytest.mark.parametrize("status", [0, 101, 600, "200", True, None])
def test_a_status_is_a_final_one(status: object) -> None:
    """200 to 599, as a number."""
    with pytest.raises(MalformedError):
        parse_response_head(json.dumps({"status": status, "headers": []}).encode(), limit=1000)


# -------------------------------------------------------------------------------------------------------- answers


@BOTH
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
    wire = AnswerSealer(unseal(data)).seal(body, head=ANSWER_HEAD, last=True)
    assert len(wire) > 2 * MAX_CHUNK_BYTES
    assert opener.feed(wire) == body
    opener.end()


def test_empty_answers_and_pieces() -> None:
    """A body may have no bytes, and an answer may end with an empty piece."""
    data, opener = seal()
    sealer = AnswerSealer(unseal(data))
    wire = sealer.seal(b"", head=ANSWER_HEAD) + sealer.seal(b"", last=True)
    assert opener.feed(wire) == b""
    opener.end()
    assert opener.head == ANSWER_HEAD


def test_the_head_comes_once_and_first() -> None:
    """A sealer cannot be used in the wrong order."""
    sealer = AnswerSealer(unseal(seal()[0]))
    with pytest.raises(ValueError, match="first piece"):
        sealer.seal(b"x")
    sealer.seal(b"x", head=ANSWER_HEAD)
    with pytest.raises(ValueError, match="first piece"):
        sealer.seal(b"x", head=ANSWER_HEAD)


def test_an_opened_request_answered_twice_uses_no_nonce_twice() -> None:
    """Each answer has a random value of its own, and so a key of its own."""
    opened = unseal(seal()[0])
    one, two = (AnswerSealer(opened).seal(b"x", head=ANSWER_HEAD) for _ in range(2))
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


def read(opener: AnswerOpener, chunks: list[bytes]) -> None:
    opener.feed(b"".join(chunks))
    opener.end()


@BOTH
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


# ------------------------------------------------------------------------------------------------------ any bytes


def value_or_malformed(call: Callable[..., object], *args: Any) -> None:
    try:
        call(*args)
    except MalformedError as error:
        assert error.check in {Check.SEALED_FORMAT, Check.SEALED_SUITE}  # noqa: PT017
    except AttestationError as error:
        assert error.check in {Check.SEALED_OPEN, Check.SEALED_TRUNCATED}  # noqa: PT017


@given(st.binary(max_size=2000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_a_request(data: bytes) -> None:
    """A value, or an error of ours."""
    value_or_malformed(parse_envelope, data)
    value_or_malformed(parse_envelope, b"\x01" + X25519.number + data)
    value_or_malformed(parse_message, data)


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_an_answer(pieces: list[bytes], size: int, last: bool) -> None:
    """A value, or an error of ours."""
    opener = AnswerOpener(bytes(32), bytes(32))
    value_or_malformed(read, opener, pieces)
    framed = [bytes(32), bytes([last]), size.to_bytes(4, "big"), *pieces]
    value_or_malformed(read, AnswerOpener(bytes(32), bytes(32)), framed)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_a_head(data: bytes) -> None:
    """A value, or an error of ours."""
    value_or_malformed(lambda: parse_request_head(data, limit=400))
    value_or_malformed(lambda: parse_response_head(data, limit=400))


@given(st.binary(max_size=3000), st.sampled_from(sorted(SUITES)))
@settings(max_examples=50, deadline=None)
def test_any_body_comes_out_as_it_went_in(body: bytes, number: bytes) -> None:
    """Whatever its bytes are."""
    data, opener = seal(body, SUITES[number])
    opened = unseal(data)
    assert parse_message(opened.content).body == body
    assert opener.feed(AnswerSealer(opened).seal(body, head=ANSWER_HEAD, last=True)) == body
