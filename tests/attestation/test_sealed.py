"""Sealed requests as bytes: every suite, and everything that may be done to them on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.sealed import (
    MAX_CLOCK_SKEW,
    SUITES,
    X25519,
    X_WING,
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
    dump_head,
    parse_request_head,
    parse_response_head,
)
from tests.attestation.sealing import (
    BODY,
    EVERY,
    HEAD,
    KEYS,
    NOW,
    PRIVATE,
    STATEMENT,
    STRANGER,
    refused,
    seal,
    unseal,
    value_or_malformed,
)


@EVERY
def test_a_request_comes_out_as_it_went_in(suite: Suite) -> None:
    """Method, target, headers and body; the statement and the suite stand outside, and nothing else does."""
    data, _ = seal(suite=suite)
    envelope = parse_envelope(data)
    assert (envelope.suite, envelope.statement) == (suite, STATEMENT)
    message = parse_message(open_request(envelope, PRIVATE).content)
    assert (message.head, message.body, message.time) == (HEAD, BODY, int(NOW.timestamp()))
    for secret in (b"POST", b"/v1", b"secret", b"authorization", b"messages"):
        assert secret not in data


@EVERY
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


@EVERY
def test_every_changed_byte_of_a_request_is_refused(suite: Suite) -> None:
    """Version, suite, statement, encapsulated key and ciphertext are all bound together."""
    data, _ = seal(suite=suite)
    seen = set()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]
        seen.add(refused(unseal, changed))
    assert seen == {Check.SEALED_FORMAT, Check.SEALED_SUITE, Check.SEALED_OPEN}


@EVERY
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


@pytest.mark.parametrize("suite", [X_WING, X25519], ids=lambda suite: suite.name)
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


@given(st.binary(max_size=2000))
def test_any_bytes_as_a_request(data: bytes) -> None:
    """A value, or an error of ours."""
    value_or_malformed(parse_envelope, data)
    for suite in SUITES.values():
        value_or_malformed(parse_envelope, b"\x01" + suite.number + data)
        value_or_malformed(unseal, b"\x01" + suite.number + data)
    value_or_malformed(parse_message, data)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_as_a_head(data: bytes) -> None:
    """A value, or an error of ours."""
    value_or_malformed(lambda: parse_request_head(data, limit=400))
    value_or_malformed(lambda: parse_response_head(data, limit=400))


VALUES = st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["x-a", "x_b", "!"]), VALUES), max_size=4))
@example([("x-a", '"\\'), ("x_b", "\t")])
def test_any_head_comes_out_as_it_went_in(headers: list[tuple[str, str]]) -> None:
    """Whatever its values are; as JSON that others read too."""
    asked = RequestHead(method="POST", target='/v1/a"b?c=%20', headers=tuple(headers))
    answered = ResponseHead(status=200, headers=tuple(headers))
    assert parse_request_head(dump_head(asked), limit=4096) == asked
    assert parse_response_head(dump_head(answered), limit=4096) == answered
    assert json.loads(dump_head(answered)) == {"status": 200, "headers": [list(pair) for pair in headers]}
