"""Bundles: what was saved can be verified again, offline and later, and nothing in it can be changed unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.audit import Audit, Audited, Auditor, audit, judge_again
from attestation.bundle import MAX_BUNDLE_BYTES, Bundle, SavedExchange, dump_bundle, parse_bundle
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, PolicyError, VerificationError
from attestation.policy import StatementPolicy
from attestation.receipt import Outcome, ServedModel
from attestation.verdict import Verdict
from attestation.verify import verify
from client_sdk.exchange import Exchange
from tests.client_sdk.pretend import (
    ANSWER,
    EVENTS,
    NOW,
    POLICY,
    PROMPT,
    PretendEnclave,
)

ENCLAVE = PretendEnclave()


def saved_with(exchange: Exchange, answer: bytes, **how: Any) -> SavedExchange:
    token = ENCLAVE.receipt(exchange, answer, **how)
    return SavedExchange(receipt=token, nonce=exchange.nonce, request=exchange.body, response=answer)


EXCHANGE = ENCLAVE.exchange()
GOOD = Bundle(
    evidence=ENCLAVE.document(b"\x09" * 32),
    nonce=b"\x09" * 32,
    exchanges=(saved_with(EXCHANGE, ANSWER),),
)
GOOD_TEXT = dump_bundle(GOOD)
TABLE: dict[str, Any] = json.loads(GOOD_TEXT)


def with_exchange(**changes: Any) -> Bundle:
    return replace(GOOD, exchanges=(replace(GOOD.exchanges[0], **changes),))


def signed(**how: Any) -> Bundle:
    """A bundle whose enclave signed something else."""
    return replace(GOOD, exchanges=(saved_with(EXCHANGE, ANSWER, **how),))


def refused(bundle: Bundle, **how: Any) -> AttestationError:
    with pytest.raises(AttestationError) as caught:
        audit(bundle, POLICY, **how)
    return caught.value


def test_a_bundle_survives_the_file() -> None:
    """What is dumped is what is parsed, with bytes and without."""
    bare = with_exchange(request=None, response=None)
    assert parse_bundle(dump_bundle(GOOD)) == GOOD
    assert parse_bundle(dump_bundle(bare)) == bare


def test_a_good_bundle_holds() -> None:
    """The receipt, the bytes and the evidence, as of the receipt's time."""
    found = audit(GOOD, POLICY)
    (exchange,) = found.exchanges
    assert exchange.request_compared
    assert exchange.response_compared
    assert exchange.receipt.id == "r-1"
    assert found.verdict.simulated


def test_digests_alone_hold_and_are_called_that() -> None:
    """Without bytes the receipt stands, and nobody says that bytes were compared."""
    (exchange,) = audit(with_exchange(request=None, response=None), POLICY).exchanges
    assert not exchange.request_compared
    assert not exchange.response_compared


def test_a_stream_may_have_its_receipts_comment() -> None:
    """The comment that carried the receipt is no part of what it covers."""
    events = b"".join(EVENTS)
    exchange = saved_with(EXCHANGE, events)
    with_comment = replace(exchange, response=events + f": attested {exchange.receipt}\n\n".encode())
    audit(replace(GOOD, exchanges=(exchange, with_comment)), POLICY)
    other = replace(exchange, response=events + b": attested a.b.c\n\n")
    assert refused(replace(GOOD, exchanges=(other,))).check is Check.RECEIPT_RESPONSE


def test_a_refusal_covers_what_was_read() -> None:
    """An error's receipt may cover the request's beginning alone."""
    begun = replace(EXCHANGE, body=PROMPT[:10])
    exchange = saved_with(begun, b"{}", status=413, outcome=Outcome.ERROR)
    audit(replace(GOOD, exchanges=(replace(exchange, request=PROMPT),)), POLICY)


TAMPERED: dict[str, tuple[Check, Bundle]] = {
    "another request": (Check.RECEIPT_REQUEST, with_exchange(request=PROMPT + b" ")),
    "another response": (Check.RECEIPT_RESPONSE, with_exchange(response=ANSWER[:-1])),
    "another nonce of the request": (Check.RECEIPT_REQUEST, with_exchange(nonce=b"\x06" * 32)),
    "a changed receipt": (
        Check.RECEIPT_SIGNATURE,
        with_exchange(receipt=GOOD.exchanges[0].receipt[:-4] + "AAAA"),
    ),
    "something that is no receipt": (Check.RECEIPT_FORMAT, with_exchange(receipt="a.b")),
    "another nonce of the evidence": (Check.BINDING_REPORT_DATA, replace(GOOD, nonce=b"\x0a" * 32)),
    "evidence of another enclave": (
        Check.RECEIPT_SIGNATURE,
        replace(GOOD, evidence=PretendEnclave().document(GOOD.nonce)),
    ),
    "something that is no evidence": (Check.EVIDENCE_FORMAT, replace(GOOD, evidence=b"{}")),
    "a receipt of another boot with the same key": (
        Check.RECEIPT_STATEMENT,
        signed(statement=sha256(b"").digest()),
    ),
    "a receipt of another model": (
        Check.RECEIPT_MODEL,
        signed(model=ServedModel(name="m", digest=bytes(32))),
    ),
    "an error called complete": (Check.RECEIPT_OUTCOME, signed(status=500)),
    "a receipt from before the statement": (Check.RECEIPT_TIME, signed(time=0)),
    "a receipt from no time at all": (Check.RECEIPT_TIME, signed(time=10**30)),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_changed_is_refused(case: str) -> None:
    """Each part of a bundle, exchanged or altered, fails the check that is about it."""
    check, bundle = TAMPERED[case]
    assert refused(bundle).check is check


def test_evidence_is_judged_as_of_the_receipt_or_as_of_the_time_given() -> None:
    """Years later the bundle still holds; at a time when its collateral had expired it does not."""
    later = NOW + timedelta(days=400)
    assert refused(GOOD, at=later).check is Check.TDX_ROOT_CRL_DATES
    with pytest.raises(VerificationError) as caught:
        judge_again(GOOD, POLICY, now=later)
    assert caught.value.check is Check.TDX_ROOT_CRL_DATES
    judge_again(GOOD, POLICY, now=NOW)


def test_the_policy_decides() -> None:
    """Authentic, and not what is accepted."""
    with pytest.raises(PolicyError):
        audit(GOOD, replace(POLICY, statement=StatementPolicy(model_digests=frozenset({bytes(32)}))))


def test_evidence_is_verified_once_for_many_receipts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receipts of one enclave cost two verifications of its evidence, however many and in whatever order they come."""
    calls: list[datetime] = []

    def counted(*evidence: Any, **how: Any) -> Verdict:
        calls.append(how["now"])
        return verify(*evidence, **how)

    monkeypatch.setattr("attestation.audit.verify", counted)
    start = int(NOW.timestamp())
    exchanges = tuple(
        saved_with(EXCHANGE, ANSWER, time=start + second) for second in (0, 900, 60, 1, 3600, 30)
    )
    many = replace(GOOD, exchanges=exchanges)
    auditor = Auditor(POLICY)
    for exchange in exchanges:
        auditor.audit(many, exchange)
    assert len(calls) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": True},
        {"purpose": "else"},
        {"nonce": "AAAA"},
        {"evidence": 1},
        {"evidence": "="},
        {"exchanges": []},
        {"exchanges": {}},
        {"exchanges": ["x"]},
        {"exchanges": [{**TABLE["exchanges"][0], "more": 1}]},
        {"exchanges": [{"receipt": "a.b.c"}]},
        {"exchanges": [{**TABLE["exchanges"][0], "receipt": "é"}]},
        {"exchanges": [{**TABLE["exchanges"][0], "request": None}]},
        {"more": 1},
    ],
)
def test_another_layout_is_malformed(changes: dict[str, Any]) -> None:
    """Exactly the members of the protocol, each of its type."""
    with pytest.raises(MalformedError) as caught:
        parse_bundle(json.dumps({**TABLE, **changes}).encode())
    assert caught.value.check is Check.BUNDLE_FORMAT


@given(st.binary(max_size=200))
def test_any_bytes_are_a_bundle_or_malformed(data: bytes) -> None:
    """Nothing else comes out."""
    with pytest.raises(MalformedError):
        parse_bundle(data)


@given(at=st.integers(0, len(GOOD_TEXT) - 3), byte=st.integers(0, 255))
def test_a_damaged_bundle_never_passes(at: int, byte: int) -> None:
    """Cut anywhere it is malformed; with one byte changed it is refused, or says what it said before."""
    with pytest.raises(MalformedError):
        parse_bundle(GOOD_TEXT[:at])
    changed = GOOD_TEXT[:at] + bytes([byte]) + GOOD_TEXT[at + 1 :]
    try:
        found = audit(parse_bundle(changed), POLICY)
    except AttestationError:
        return
    assert said(found) == said(audit(GOOD, POLICY))


def said(found: Audit) -> list[Audited]:
    """All but the evidence itself, parts of which nobody looks at: a CRL's issuers, the root that a chain brings along."""
    nothing = audit(GOOD, POLICY).verdict.evidence
    return [replace(each, verdict=replace(each.verdict, evidence=nothing)) for each in found.exchanges]


def test_too_large_is_malformed() -> None:
    """The limit is held before anything is read."""
    with pytest.raises(MalformedError, match="limit"):
        parse_bundle(b" " * (MAX_BUNDLE_BYTES + 1))
