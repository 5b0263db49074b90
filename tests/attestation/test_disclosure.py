"""Disclosures: what is shown of a chat is what was signed, and what is hidden cannot be found in the file."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from hmac import digest as hmac
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_encode
from attestation.audit import Auditor, audit
from attestation.bundle import Bundle, SavedExchange
from attestation.checks import Check
from attestation.disclosure import (
    MAX_DISCLOSURE_BYTES,
    Disclosure,
    Hidden,
    Shown,
    audit_disclosure,
    disclose,
    dump_disclosure,
    parse_disclosure,
)
from attestation.errors import AttestationError, MalformedError
from attestation.parts import RunningParts, messages_of, part_digest, part_salt, parts_digest, texts_of
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

ENCLAVE = PretendEnclave()
MESSAGES = (
    b'{"role": "system","content":"be\\u0020kind"}',
    b'{"role":"user", "content":"where is the t\xc3\xa9st treasure buried"}',
    b'{"role":"user","content":"and what is two plus two"}',
)
PROMPT = b'{"seed":1, "messages" : [ %s ,\n%s,%s], "model":"m"}' % MESSAGES
TEXTS = ("four, söme say", "five")
ANSWER = json.dumps(
    {"choices": [{"index": i, "message": {"content": text}} for i, text in enumerate(TEXTS)]}
).encode()


def event(*choices: tuple[int, str | None]) -> bytes:
    said = [{"index": index, "delta": {"content": text}} for index, text in choices]
    return b"data: " + json.dumps({"choices": said}).encode() + b"\n\n"


STREAM = (
    event((0, "")),
    event((0, "four, s"), (1, None)),
    event((1, "fi")),
    event((0, "öme say")),
    event((1, "ve")),
    b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
    b"data: [DONE]\n\n",
)
EXCHANGE = ENCLAVE.exchange(PROMPT, nonce=b"\x5a" * 32)


def parts_of(*answer: bytes, request: bytes = PROMPT) -> bytes | None:
    running = RunningParts(EXCHANGE.nonce, request)
    for data in answer:
        running.answer(data)
    return running.digest()


def bundle_of(answer: bytes, **how: Any) -> Bundle:
    token = ENCLAVE.receipt(EXCHANGE, answer, **{"parts": parts_of(answer), **how})
    saved = SavedExchange(receipt=token, nonce=EXCHANGE.nonce, request=PROMPT, response=answer)
    return Bundle(evidence=ENCLAVE.document(b"\x09" * 32), nonce=b"\x09" * 32, exchanges=(saved,))


BUNDLE = bundle_of(ANSWER)
GOOD = disclose(BUNDLE, BUNDLE.exchanges[0], messages={2}, choices={0})
TABLE: dict[str, Any] = json.loads(dump_disclosure(GOOD))


def refused(disclosure: Disclosure, **how: Any) -> Check:
    with pytest.raises(AttestationError) as caught:
        audit_disclosure(Auditor(POLICY, **how), disclosure)
    return caught.value.check


# ---------------------------------------------------------------------------------------------------------- parts


def test_messages_are_the_bytes_of_the_request() -> None:
    """With their own spaces and escapes, whatever stands between them."""
    assert messages_of(PROMPT) == list(MESSAGES)


def test_texts_are_the_same_plain_and_streamed() -> None:
    """A choice's text is its content, put together from a stream's events."""
    expected = [text.encode() for text in TEXTS]
    assert texts_of(ANSWER) == texts_of(b"".join(STREAM)) == expected
    assert parts_of(ANSWER) == parts_of(b"".join(STREAM)) == parts_of(*STREAM)


def test_digests_are_made_as_the_protocol_says() -> None:
    """Salts by HKDF from the nonce, digests by SHA-256, spelt out with other means."""
    nonce = EXCHANGE.nonce
    prk = hmac(bytes(32), nonce, "sha256")  # RFC 5869 with no salt
    salt = hmac(prk, b"attested-inference/part/v1\0message/2\1", "sha256")
    assert part_salt(nonce, "message", 2) == salt
    assert part_digest(salt, b"x") == sha256(salt + b"x").digest()
    one, two = b"\1" * 32, b"\2" * 32
    whole = b"attested-inference/parts/v1\0" + b"\0\0\0\2" + one + two + b"\0\0\0\1" + two
    assert parts_digest([one, two], [two]) == sha256(whole).digest()


@pytest.mark.parametrize(
    "request_body",
    [
        b"", b"[]", b"{}", b"\xff", b'{"messages":1}', b'{"messages":{}}', b'{"messages":[1', b'{"messages":[1 2]}',
        b'{"messages":[],"messages":[]}', b'{"messages" []}', b"{1:[]}", b'{"messages":' + b"[" * 100_000,
    ],
)  # fmt: skip
def test_requests_without_messages_are_malformed(request_body: bytes) -> None:
    """Not one list of messages, or no JSON that ends."""
    with pytest.raises(MalformedError) as caught:
        messages_of(request_body)
    assert caught.value.check is Check.RECEIPT_PARTS


@pytest.mark.parametrize(
    "answer",
    [
        b"{", b'{"choices":1}', b'{"choices":[1]}', b'{"choices":[{"message":{"content":"a"}}]}',
        b'{"choices":[{"index":1,"message":{"content":"a"}}]}', b'{"choices":[{"index":0,"text":"a"}]}',
        b'{"choices":[{"index":0,"message":{"content":["a"]}}]}',
        b'{"choices":[{"index":0,"message":{"content":"\\ud800"}}]}',
    ],
)  # fmt: skip
def test_answers_laid_out_otherwise_have_no_parts(answer: bytes) -> None:
    """What is not understood is neither committed to nor disclosed."""
    assert parts_of(answer) is None
    with pytest.raises(MalformedError):
        texts_of(answer)


@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:1 messages').map(str.encode))
def test_any_bytes_have_parts_or_are_malformed(data: bytes) -> None:
    """Nothing else comes out of the reader of requests and that of answers."""
    for read in (messages_of, texts_of):
        with suppress(MalformedError):
            assert isinstance(read(data), list)


def test_an_audit_compares_parts_with_the_saved_bytes() -> None:
    """An enclave that commits to other parts than it saw and said is found out before anything is disclosed."""
    audit(BUNDLE, POLICY)
    audit(bundle_of(b"".join(STREAM)), POLICY)
    with pytest.raises(AttestationError) as caught:
        audit(bundle_of(ANSWER, parts=bytes(32)), POLICY)
    assert caught.value.check is Check.RECEIPT_PARTS


# ---------------------------------------------------------------------------------------------------- disclosures


@pytest.mark.parametrize("answer", [ANSWER, b"".join(STREAM)], ids=["plain", "streamed"])
def test_one_message_and_one_choice(answer: bytes) -> None:
    """They are shown as they were sent and said, and hold, also after the file was written and read."""
    bundle = bundle_of(answer)
    made = disclose(bundle, bundle.exchanges[0], messages={2}, choices={0})
    assert parse_disclosure(dump_disclosure(made)) == made
    audited = audit_disclosure(Auditor(POLICY), made)
    assert audited.receipt.id == "r-1"
    assert not audited.request_compared
    assert [isinstance(part, Shown) for part in made.messages] == [False, False, True]
    assert made.messages[2] == Shown(salt=part_salt(EXCHANGE.nonce, "message", 2), value=MESSAGES[2])
    assert isinstance(made.choices[0], Shown)
    assert made.choices[0].value == TEXTS[0].encode()


def everything_in(value: Any) -> bytes:
    """All that a reader of the file can get at: its texts, and what they are base64url of, and what is inside that."""
    if isinstance(value, dict):
        return b"\n".join(k.encode() + everything_in(v) for k, v in value.items())
    if isinstance(value, list):
        return b"\n".join(map(everything_in, value))
    if not isinstance(value, str):
        return str(value).encode()
    found = [value.encode()]
    for piece in value.split("."):
        try:
            inner = urlsafe_b64decode(piece + "=" * (-len(piece) % 4))
        except ValueError:
            continue
        found += [inner, inner.hex().encode()]
    return b"\n".join(found)


def test_hidden_parts_cannot_be_found_in_the_file() -> None:
    """Neither they, nor their salts, nor what the salts are made from, in any spelling."""
    seen = everything_in(TABLE)
    assert MESSAGES[2] in seen, "this looks at the right place"
    assert part_salt(EXCHANGE.nonce, "message", 2) in seen
    hidden = [b"treasure", b"kind", b"five"]
    secrets = [
        EXCHANGE.nonce,
        part_salt(EXCHANGE.nonce, "message", 0),
        part_salt(EXCHANGE.nonce, "choice", 1),
    ]
    for secret in secrets:
        hidden += [secret, secret.hex().encode(), b64url_encode(secret).encode()]
    for text in hidden:
        assert text not in seen
    # and a guess cannot be tried out: what the file has of it is salted with something that it has not
    assert sha256(MESSAGES[1]).digest() not in seen
    assert part_digest(part_salt(EXCHANGE.nonce, "message", 2), MESSAGES[1]) not in seen


def test_what_does_not_exist_cannot_be_disclosed() -> None:
    """No such message; no bytes; a receipt of a request that did not ask; parts that the receipt does not commit to."""
    saved = BUNDLE.exchanges[0]
    with pytest.raises(LookupError, match="no message 3"):
        disclose(BUNDLE, saved, messages={3})
    with pytest.raises(LookupError, match="no choice -1"):
        disclose(BUNDLE, saved, choices={-1})
    for bundle, exchange in (
        (BUNDLE, replace(saved, response=None)),
        (BUNDLE, replace(saved, nonce=bytes(32))),
        (BUNDLE, replace(saved, request=PROMPT.replace(b"treasure", b"pleasure"))),
        (bundle_of(ANSWER, parts=None), bundle_of(ANSWER, parts=None).exchanges[0]),
    ):
        with pytest.raises(AttestationError) as caught:
            disclose(bundle, exchange, messages={0})
        assert caught.value.check is Check.RECEIPT_PARTS


def message(at: int, **changes: Any) -> Disclosure:
    parts = list(GOOD.messages)
    parts[at] = replace(parts[at], **changes)
    return replace(GOOD, messages=tuple(parts))


OTHER = bundle_of(ANSWER, id="r-2", parts=bytes(32)).exchanges[0].receipt

TAMPERED: dict[str, tuple[Check, Callable[[], Disclosure]]] = {
    "another text shown": (Check.RECEIPT_PARTS, lambda: message(2, value=MESSAGES[2] + b" ")),
    "another salt": (Check.RECEIPT_PARTS, lambda: message(2, salt=bytes(32))),
    "another hidden digest": (Check.RECEIPT_PARTS, lambda: message(0, digest=bytes(32))),
    "a part dropped": (Check.RECEIPT_PARTS, lambda: replace(GOOD, messages=GOOD.messages[1:])),
    "a part added": (
        Check.RECEIPT_PARTS,
        lambda: replace(GOOD, messages=(*GOOD.messages, Hidden(digest=bytes(32)))),
    ),
    "a part twice": (Check.RECEIPT_PARTS, lambda: replace(GOOD, messages=GOOD.messages[:1] + GOOD.messages)),
    "parts in another order": (Check.RECEIPT_PARTS, lambda: replace(GOOD, messages=GOOD.messages[::-1])),
    "a message called a choice": (
        Check.RECEIPT_PARTS,
        lambda: replace(GOOD, messages=GOOD.messages[:2], choices=(GOOD.messages[2], *GOOD.choices)),
    ),
    "messages and choices exchanged": (
        Check.RECEIPT_PARTS,
        lambda: replace(GOOD, messages=GOOD.choices, choices=GOOD.messages),
    ),
    "another receipt of the same enclave": (Check.RECEIPT_PARTS, lambda: replace(GOOD, receipt=OTHER)),
    "a receipt that commits to no parts": (
        Check.RECEIPT_PARTS,
        lambda: replace(GOOD, receipt=bundle_of(ANSWER, parts=None).exchanges[0].receipt),
    ),
    "a changed receipt": (
        Check.RECEIPT_SIGNATURE,
        lambda: replace(GOOD, receipt=GOOD.receipt[:-9] + "A" + GOOD.receipt[-8:]),
    ),
    "evidence of another enclave": (
        Check.RECEIPT_SIGNATURE,
        lambda: replace(GOOD, evidence=PretendEnclave().document(GOOD.nonce)),
    ),
    "another nonce of the evidence": (Check.BINDING_REPORT_DATA, lambda: replace(GOOD, nonce=bytes(32))),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered(case: str) -> None:
    """Every field of a disclosure, changed, dropped, added, doubled or moved."""
    check, made = TAMPERED[case]
    assert refused(made()) is check


def test_the_proof_of_the_log_goes_along() -> None:
    """It says nothing of hidden parts; and where it is there, it has to hold: this enclave has no log at all."""
    saved = replace(BUNDLE.exchanges[0], log=b"a proof")
    made = disclose(BUNDLE, saved, messages={2})
    assert parse_disclosure(dump_disclosure(made)) == made
    assert refused(made) is Check.LOG_MISSING


def test_evidence_is_judged_at_the_auditors_time() -> None:
    """As of the receipt's time, unless another is given."""
    assert refused(GOOD, at=NOW + timedelta(days=400)) is Check.TDX_ROOT_CRL_DATES


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"purpose": "attested-inference/bundle"},
        {"nonce": "AAAA"},
        {"evidence": 1},
        {"receipt": 1},
        {"receipt": "é"},
        {"messages": {}},
        {"messages": [1]},
        {"messages": [{}]},
        {"messages": [{"digest": "AAAA"}]},
        {"messages": [{**TABLE["messages"][2], **TABLE["messages"][0]}]},
        {"messages": [{"salt": "AAAA", "value": "AAAA"}]},
        {"choices": None},
        {"log": 1},
        {"more": 1},
    ],
)
def test_another_layout_is_malformed(changes: dict[str, Any]) -> None:
    """Exactly the members of the protocol, each of its type."""
    with pytest.raises(MalformedError) as caught:
        parse_disclosure(json.dumps({**TABLE, **changes}).encode())
    assert caught.value.check is Check.DISCLOSURE_FORMAT


@pytest.mark.parametrize("name", sorted(TABLE))
def test_no_member_may_be_missing(name: str) -> None:
    """All seven, always."""
    with pytest.raises(MalformedError):
        parse_disclosure(json.dumps({k: v for k, v in TABLE.items() if k != name}).encode())


@given(st.data())
def test_a_damaged_file_never_passes(data: st.DataObject) -> None:
    """Cut anywhere it is malformed; with one byte changed it is refused, or says what it said before."""
    text = dump_disclosure(GOOD)
    at = data.draw(st.integers(0, len(text) - 3))
    with pytest.raises(MalformedError):
        parse_disclosure(text[:at])
    changed = text[:at] + bytes([data.draw(st.integers(0, 255))]) + text[at + 1 :]
    try:
        found = parse_disclosure(changed)
        audit_disclosure(Auditor(POLICY), found)
    except AttestationError:
        return
    assert (found.messages, found.choices) == (GOOD.messages, GOOD.choices)


def test_too_large_is_malformed() -> None:
    """The limit is held before anything is read."""
    with pytest.raises(MalformedError, match="limit"):
        parse_disclosure(b" " * (MAX_DISCLOSURE_BYTES + 1))
