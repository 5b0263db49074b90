"""Receipts: signed over the exact bytes of one exchange."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.receipt import (
    MAX_CLOCK_SKEW,
    MAX_RECEIPT_BYTES,
    TYPE,
    Outcome,
    Receipt,
    Request,
    Response,
    RunningDigest,
    ServedModel,
    Usage,
    check_receipt,
    verify_receipt,
)

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
NONCE = b"\x09" * 32
BODY, ANSWER = b'{"model":"m"}', b'{"choices":[]}'
NOW = datetime.fromtimestamp(1_700_000_000, UTC)
REQUEST = Request(
    method="POST", path="/v1/chat/completions", digest=sha256(NONCE + BODY).digest(), length=len(BODY)
)
RECEIPT = Receipt(
    id="r-1",
    counter=1,
    time=1_700_000_000,
    request=REQUEST,
    response=Response(status=200, digest=sha256(NONCE + ANSWER).digest(), length=len(ANSWER)),
    outcome=Outcome.COMPLETE,
    model=ServedModel(name="m", digest=b"\x03" * 32),
    usage=Usage(prompt_tokens=3, completion_tokens=5),
    sampling={"seed": 7, "temperature": 0.5, "stop": ["a"]},
    statement=b"\x04" * 32,
)
TOKEN = RECEIPT.sign(KEY)


def _check(**changes: Any) -> None:
    expected: dict[str, Any] = {
        "statement": b"\x04" * 32,
        "model_digest": b"\x03" * 32,
        "request": REQUEST,
        "status": 200,
        "response": RunningDigest(NONCE, ANSWER),
        "now": NOW,
    }
    check_receipt(verify_receipt(TOKEN, PUBLIC), **{**expected, **changes})


def test_a_receipt_survives_the_round_trip() -> None:
    """Signing and verifying gives the same receipt."""
    assert verify_receipt(TOKEN, PUBLIC) == RECEIPT


def test_what_is_not_always_there() -> None:
    """A digest over token ids and a count of cached tokens survive the round trip; without the former there is no claim."""
    usage = Usage(prompt_tokens=3, completion_tokens=5, cached_tokens=2)
    receipt = dataclasses.replace(RECEIPT, tokens=b"\x05" * 32, usage=usage)
    assert verify_receipt(receipt.sign(KEY), PUBLIC) == receipt
    assert "tokens" not in jwt.decode(TOKEN, options={"verify_signature": False})


def test_a_receipt_without_usage_says_so() -> None:
    """Null usage means that the engine gave none."""
    receipt = dataclasses.replace(RECEIPT, usage=None)
    assert verify_receipt(receipt.sign(KEY), PUBLIC).usage is None


@given(
    texts=st.lists(st.text(), min_size=4, max_size=4),
    usage=st.none() | st.builds(Usage, prompt_tokens=st.integers(0), completion_tokens=st.integers(0)),
    sampling=st.dictionaries(st.text(), st.none() | st.text() | st.integers() | st.floats(0, 1), max_size=3),
    digest=st.none() | st.binary(min_size=32, max_size=32),
)
def test_the_claims_are_json_as_pythons_own_writer_has_it(
    texts: list[str], usage: Usage | None, sampling: dict[str, Any], digest: bytes | None
) -> None:
    """Whatever a path, a name or a parameter holds, the payload is JSON without spaces, in ASCII, that reads back as it was."""
    receipt = dataclasses.replace(
        RECEIPT,
        id=texts[0],
        request=dataclasses.replace(REQUEST, method=texts[1], path=texts[2]),
        model=ServedModel(name=texts[3], digest=b"\x03" * 32),
        usage=usage,
        sampling=sampling,
        tokens=digest,
        parts=digest,
    )
    payload = b64url_decode(receipt.sign(KEY).split(".")[1], Check.RECEIPT_FORMAT, "the payload")
    assert payload == json.dumps(json.loads(payload), separators=(",", ":")).encode()
    assert verify_receipt(receipt.sign(KEY), PUBLIC) == receipt


def test_the_exchange_it_was_made_for_is_accepted() -> None:
    """All parts agree, also when the answer came in pieces."""
    _check()
    pieces = RunningDigest(NONCE)
    for byte in ANSWER:
        pieces.update(bytes([byte]))
    _check(response=pieces)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"statement": b"\x05" * 32}, Check.RECEIPT_STATEMENT),
        ({"model_digest": b"\x05" * 32}, Check.RECEIPT_MODEL),
        ({"request": dataclasses.replace(REQUEST, method="GET")}, Check.RECEIPT_REQUEST),
        ({"request": dataclasses.replace(REQUEST, path="/v1/completions")}, Check.RECEIPT_REQUEST),
        ({"request": dataclasses.replace(REQUEST, length=1)}, Check.RECEIPT_REQUEST),
        ({"request": dataclasses.replace(REQUEST, digest=sha256(b"other").digest())}, Check.RECEIPT_REQUEST),
        ({"status": 201}, Check.RECEIPT_STATUS),
        ({"response": RunningDigest(NONCE, ANSWER + b" ")}, Check.RECEIPT_RESPONSE),
        ({"response": RunningDigest(NONCE, ANSWER[:-1])}, Check.RECEIPT_RESPONSE),
        ({"response": RunningDigest(b"\x08" * 32, ANSWER)}, Check.RECEIPT_RESPONSE),
        ({"now": datetime.fromtimestamp(1_700_000_001 + MAX_CLOCK_SKEW, UTC)}, Check.RECEIPT_TIME),
        ({"now": datetime.fromtimestamp(1_699_999_999 - MAX_CLOCK_SKEW, UTC)}, Check.RECEIPT_TIME),
    ],
)
def test_any_other_exchange_is_refused(changes: dict[str, Any], check: Check) -> None:
    """Each difference is refused by its own check."""
    with pytest.raises(VerificationError) as error:
        _check(**changes)
    assert error.value.check is check


def test_another_key_is_refused() -> None:
    """A receipt that the statement's key did not sign is refused."""
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(VerificationError) as error:
        verify_receipt(TOKEN, other)
    assert error.value.check is Check.RECEIPT_SIGNATURE


@pytest.mark.parametrize(
    ("algorithm", "key", "headers"),
    [
        ("none", None, {"typ": TYPE}),
        ("HS256", PUBLIC, {"typ": TYPE}),
        ("EdDSA", KEY, {"typ": "JWT"}),
        ("EdDSA", KEY, {"typ": TYPE, "jku": "https://elsewhere"}),
        ("EdDSA", KEY, {"typ": TYPE, "crit": ["x"], "x": 1}),
    ],
)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_only_the_one_header_is_accepted(algorithm: str, key: Any, headers: dict[str, Any]) -> None:
    """No other algorithm, type or header parameter, whoever signed it."""
    token = jwt.PyJWS().encode(b"{}", key, algorithm=algorithm, headers=headers)
    with pytest.raises(MalformedError) as error:
        verify_receipt(token, PUBLIC)
    assert error.value.check is Check.RECEIPT_FORMAT


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b'{"id":1}', b'{"sampling":[]}', b'{"id":"a","id":"b"}', b"\xff"],
)
def test_signed_nonsense_is_malformed(payload: bytes) -> None:
    """A valid signature does not make a receipt."""
    token = jwt.PyJWS().encode(payload, KEY, algorithm="EdDSA", headers={"typ": TYPE})
    with pytest.raises(MalformedError) as error:
        verify_receipt(token, PUBLIC)
    assert error.value.check is Check.RECEIPT_FORMAT


def test_an_oversized_receipt_is_malformed() -> None:
    """The limit is applied before anything is decoded."""
    with pytest.raises(MalformedError):
        verify_receipt("a" * (MAX_RECEIPT_BYTES + 1), PUBLIC)


def test_every_changed_character_is_refused() -> None:
    """Any change of any character of the token is refused, also of the spare bits at the end of a segment."""
    for index, char in enumerate(TOKEN):
        for other in (
            "AB_.=" if index < len(TOKEN) - 1 else "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
        ):
            if other == char:
                continue
            with pytest.raises(AttestationError) as error:
                verify_receipt(TOKEN[:index] + other + TOKEN[index + 1 :], PUBLIC)
            assert error.value.check in {Check.RECEIPT_FORMAT, Check.RECEIPT_SIGNATURE}


@pytest.mark.parametrize("size", range(0, len(TOKEN), 5))
def test_every_truncation_is_refused(size: int) -> None:
    """No prefix of a token is a token."""
    with pytest.raises(AttestationError):
        verify_receipt(TOKEN[:size], PUBLIC)


@given(st.text(max_size=200))
def test_any_text_gives_a_receipt_or_a_named_error(text: str) -> None:
    """Never an exception outside the error tree."""
    with pytest.raises(AttestationError):
        verify_receipt(text, PUBLIC)
