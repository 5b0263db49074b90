"""The tamper table: everything that somebody between an enclave and its user may try, and the check that refuses it.

These tables work on bytes, without sockets, and flip every single one; `test_tamper_live` has those with the real gateway.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509 import load_der_x509_crl

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.collateral import Collateral, IntelCollateral
from attestation.errors import AttestationError
from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.receipt import (
    NONCE_HEADER,
    RECEIPT_HEADER,
    Outcome,
    Request,
    RunningDigest,
    ServedModel,
)
from attestation.verify import verify
from client_sdk.exchange import Exchange
from client_sdk.receipts import PlainCheck
from client_sdk.session import Session
from client_sdk.streams import StreamCheck
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, POLICY, PROMPT, PretendEnclave, stream_headers

ENCLAVE, STRANGER = PretendEnclave(), PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
NONCE = b"\x06" * 32
EVIDENCE = ENCLAVE.evidence(NONCE)
STREAM = b"".join(EVENTS)
RECEIPT_CHECKS = {Check.RECEIPT_FORMAT, Check.RECEIPT_SIGNATURE}


def flips(data: bytes, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """Every byte changed, one at a time: another bit of it each time."""
    for at in range(0, len(data), step):
        yield at, data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def plain(
    answer: bytes, headers: Mapping[str, str], status: int = 200, exchange: Exchange = EXCHANGE
) -> None:
    check = PlainCheck(exchange, status, headers)
    check.feed(answer)
    check.finish(NOW)


def stream(wire: bytes, exchange: Exchange = EXCHANGE) -> None:
    check = StreamCheck(exchange, 200, stream_headers(exchange))
    for _ in check.feed(wire, NOW):
        pass
    check.finish(NOW)
    check.conclude()


def refused(call: Callable[..., object], *args: Any, **kwargs: Any) -> Check:
    """The check that refuses; that nothing does is the failure these tests are about."""
    with pytest.raises(AttestationError) as caught:
        call(*args, **kwargs)
    return caught.value.check


# ------------------------------------------------------------------------------------------ evidence, byte by byte


def judge(evidence: Evidence) -> None:
    verify(evidence, POLICY, nonce=NONCE, now=NOW)


def judged(evidence: Evidence) -> Check | None:
    try:
        judge(evidence)
    except AttestationError as error:
        return error.check
    return None


def test_the_untouched_evidence_is_accepted() -> None:
    """The tables below change what is good, and nothing else is wrong with it."""
    judge(EVIDENCE)


def test_every_byte_of_the_statement() -> None:
    """A changed statement is malformed, or not what the hardware signed."""
    for at, statement in flips(EVIDENCE.statement):
        check = refused(judge, replace(EVIDENCE, statement=statement))
        assert check in {Check.STATEMENT_FORMAT, Check.BINDING_REPORT_DATA}, at


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_byte_of_the_quote(step: int) -> None:
    """Each byte of header, report, signatures, QE report and certificate chain is signed by somebody."""
    assert isinstance(EVIDENCE.cpu, TdxEvidence)
    seen = set()
    for at, quote in flips(EVIDENCE.cpu.quote, step):
        check = judged(replace(EVIDENCE, cpu=TdxEvidence(quote)))
        if check is None:
            assert same_certificates(EVIDENCE.cpu.quote, quote), at
        else:
            assert check.startswith("tdx."), at
            seen.add(check)
    assert {
        Check.TDX_FORMAT,
        Check.TDX_QUOTE_SIGNATURE,
        Check.TDX_QE_REPORT_SIGNATURE,
        Check.TDX_AK_BINDING,
    } <= seen


def same_certificates(quote: bytes, changed: bytes) -> bool:
    """PEM leaves some freedom (line ends, text between blocks): then the certificates themselves are the same."""
    start = quote.find(b"-----BEGIN")
    return quote[:start] == changed[:start] and len(quote) == len(changed)


#: Nothing rests on this one: the chain that the quote itself carries is what has to issue the PCK CRL.
UNUSED = "pck_crl_issuer_chain"


@pytest.mark.parametrize("name", sorted({f.name for f in dataclasses.fields(IntelCollateral)} - {UNUSED}))
def test_every_byte_of_the_collateral(name: str) -> None:
    """Certificates, revocation lists, TCB info and QE identity: changed anywhere, they vouch for nothing."""
    intel = EVIDENCE.collateral.intel
    assert intel is not None
    value: str | bytes = getattr(intel, name)
    raw = value.encode() if isinstance(value, str) else value
    # how many bits of a signature's last byte do not count: a number in its wrapping that nobody signs, or needs
    unsigned = raw.index(load_der_x509_crl(raw).signature) - 1 if name.endswith("crl") else None
    refusals = 0
    for at, changed in flips(raw, step=max(1, len(raw) // 400)):
        new: Any = changed.decode("latin-1") if isinstance(value, str) else changed
        check = judged(replace(EVIDENCE, collateral=Collateral(intel=replace(intel, **{name: new}))))
        assert check is None or check.startswith("tdx."), at
        # PEM leaves some freedom in line ends and in text between blocks
        assert check is not None or name.endswith("chain") or at == unsigned, (
            f"{name}: byte {at} can be changed unseen"
        )
        refusals += check is not None
    assert refusals > len(raw) // 1000


EVIDENCE_TABLE: dict[str, tuple[Check, Callable[[Session, bytes], object]]] = {
    "evidence of another nonce": (
        Check.BINDING_REPORT_DATA,
        lambda s, nonce: s.accept(ENCLAVE.document(bytes(32)), b64url_encode(nonce), NOW),
    ),
    "an answer that names another nonce": (
        Check.BINDING_NONCE,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce), b64url_encode(bytes(32)), NOW),
    ),
    "an answer that names no nonce": (
        Check.BINDING_NONCE,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce), None, NOW),
    ),
    "the statement of another enclave": (
        Check.BINDING_REPORT_DATA,
        lambda s, nonce: s.accept(
            dump_evidence(replace(ENCLAVE.evidence(nonce), statement=STRANGER.statement)),
            b64url_encode(nonce),
            NOW,
        ),
    ),
    "an expired statement": (
        Check.STATEMENT_VALIDITY,
        lambda s, nonce: s.accept(
            PretendEnclave(not_after=NOW - timedelta(seconds=1)).document(nonce), b64url_encode(nonce), NOW
        ),
    ),
    "collateral taken away": (
        Check.COLLATERAL_MISSING,
        lambda s, nonce: s.accept(
            dump_evidence(replace(ENCLAVE.evidence(nonce), collateral=Collateral())),
            b64url_encode(nonce),
            NOW,
        ),
    ),
    "a document cut short": (
        Check.EVIDENCE_FORMAT,
        lambda s, nonce: s.accept(ENCLAVE.document(nonce)[:-1], b64url_encode(nonce), NOW),
    ),
}


@pytest.mark.parametrize("case", EVIDENCE_TABLE)
def test_evidence(case: str) -> None:
    """Evidence that is not for this nonce, this enclave and this moment gives no verdict."""
    check, accept = EVIDENCE_TABLE[case]
    session = Session(POLICY)
    assert refused(accept, session, session.begin()) is check


# ------------------------------------------------------------------------------------ plain answers, byte by byte


def test_every_byte_of_the_request() -> None:
    """An enclave that got another request than the one sent gives itself away."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, body in flips(PROMPT):
        assert (
            refused(plain, ANSWER, headers, exchange=replace(EXCHANGE, body=body)) is Check.RECEIPT_REQUEST
        ), at
    for at, path in flips(EXCHANGE.path.encode()):
        asked = replace(EXCHANGE, path=path.decode("latin-1"))
        assert refused(plain, ANSWER, headers, exchange=asked) is Check.RECEIPT_REQUEST, at
    assert refused(plain, ANSWER, headers, exchange=replace(EXCHANGE, method="PUT")) is Check.RECEIPT_REQUEST


def test_every_byte_of_an_answer() -> None:
    """A changed, shortened or lengthened answer is not what was signed."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, answer in flips(ANSWER):
        assert refused(plain, answer, headers) is Check.RECEIPT_RESPONSE, at
    for length in range(len(ANSWER)):
        assert refused(plain, ANSWER[:length], headers) is Check.RECEIPT_RESPONSE, length
    assert refused(plain, ANSWER + b" ", headers) is Check.RECEIPT_RESPONSE


def test_every_byte_of_a_receipt() -> None:
    """A receipt changed in any character is no receipt."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, token in flips(headers[RECEIPT_HEADER].encode()):
        changed = headers | {RECEIPT_HEADER: token.decode("latin-1")}
        assert refused(plain, ANSWER, changed) in RECEIPT_CHECKS, at


def test_every_byte_of_an_answers_nonce() -> None:
    """The answer names the request's nonce."""
    headers = ENCLAVE.headers(EXCHANGE, ANSWER)
    for at, nonce in flips(headers[NONCE_HEADER].encode()):
        changed = headers | {NONCE_HEADER: nonce.decode("latin-1")}
        assert refused(plain, ANSWER, changed) is Check.RECEIPT_REQUEST, at


SECOND = replace(EXCHANGE, nonce=b"\x0a" * 32)  # the same request once more, with a nonce of its own

OTHER_MODEL = ServedModel(name="m", digest=b"\x02" * 32)

PLAIN_TABLE: dict[str, tuple[Check, Callable[[], object]]] = {
    "a missing receipt": (
        Check.RECEIPT_MISSING,
        lambda: plain(ANSWER, {NONCE_HEADER: b64url_encode(EXCHANGE.nonce)}),
    ),
    "a receipt of another request": (
        Check.RECEIPT_REQUEST,
        lambda: plain(ANSWER, ENCLAVE.headers(replace(EXCHANGE, body=b"{}"), ANSWER)),
    ),
    "a receipt replayed to a second identical request": (
        Check.RECEIPT_REQUEST,
        lambda: plain(
            ANSWER,
            ENCLAVE.headers(EXCHANGE, ANSWER) | {NONCE_HEADER: b64url_encode(SECOND.nonce)},
            exchange=SECOND,
        ),
    ),
    "an answer and its receipt of another enclave": (
        Check.RECEIPT_SIGNATURE,
        lambda: plain(ANSWER, STRANGER.headers(EXCHANGE, ANSWER)),
    ),
    "a receipt signed by a key that is not in the statement": (
        Check.RECEIPT_SIGNATURE,
        lambda: plain(ANSWER, PretendEnclave(tls_spki=ENCLAVE.tls_spki).headers(EXCHANGE, ANSWER)),
    ),
    "a receipt under another statement of the same key": (
        Check.RECEIPT_STATEMENT,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, statement=b"\x01" * 32)),
    ),
    "a receipt for another model": (
        Check.RECEIPT_MODEL,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, model=OTHER_MODEL)),
    ),
    "a changed status": (
        Check.RECEIPT_STATUS,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER), status=201),
    ),
    "an error called an answer": (
        Check.RECEIPT_STATUS,
        lambda: plain(
            ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, status=500, outcome=Outcome.ERROR), status=200
        ),
    ),
    "a receipt of long ago": (
        Check.RECEIPT_TIME,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, time=int(NOW.timestamp()) - 301)),
    ),
    "an aborted answer": (
        Check.RECEIPT_OUTCOME,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, outcome=Outcome.ABORTED)),
    ),
    "a part of the request, answered as if it were all": (
        Check.RECEIPT_REQUEST,
        lambda: plain(ANSWER, ENCLAVE.headers(EXCHANGE, ANSWER, request=_part())),
    ),
}


def _part() -> Request:
    digest = RunningDigest(EXCHANGE.nonce, PROMPT[:5])
    return Request(method="POST", path=EXCHANGE.path, digest=digest.digest(), length=5)


@pytest.mark.parametrize("case", PLAIN_TABLE)
def test_plain(case: str) -> None:
    """A receipt that is about anything else than this exchange is refused by the check that says so."""
    check, attempt = PLAIN_TABLE[case]
    assert refused(attempt) is check


# ------------------------------------------------------------------------------------------ streams, byte by byte

COMMENTED = ENCLAVE.comment(EXCHANGE, STREAM)
ONE, TWO, THREE, USAGE, DONE = EVENTS


def test_every_byte_of_a_stream() -> None:
    """An event changed anywhere is refused, at the latest when the stream ends; no change makes an event of none."""
    for at, changed in flips(STREAM):
        # a changed blank line may leave [DONE] or the receipt itself inside another event
        assert refused(stream, changed + COMMENTED) in {Check.RECEIPT_RESPONSE, Check.STREAM_TRUNCATED}, at


def test_every_byte_of_a_streams_receipt() -> None:
    """What is not the receipt any more is a part of the answer without one, or a receipt that does not verify."""
    for at, changed in flips(COMMENTED):
        assert refused(stream, STREAM + changed) in {*RECEIPT_CHECKS, Check.STREAM_TRUNCATED}, at


def test_a_stream_cut_at_every_byte() -> None:
    """Also exactly where an event ends, and just before the receipt."""
    wire = STREAM + COMMENTED
    for length in range(len(wire)):
        assert refused(stream, wire[:length]) is Check.STREAM_TRUNCATED, length


STREAM_TABLE: dict[str, tuple[Check, bytes]] = {
    "an event dropped": (Check.RECEIPT_RESPONSE, ONE + THREE + USAGE + DONE),
    "the first event dropped": (Check.RECEIPT_RESPONSE, TWO + THREE + USAGE + DONE),
    "[DONE] dropped": (Check.RECEIPT_RESPONSE, ONE + TWO + THREE + USAGE),
    "two events in another order": (Check.RECEIPT_RESPONSE, ONE + THREE + TWO + USAGE + DONE),
    "an event twice": (Check.RECEIPT_RESPONSE, ONE + TWO + TWO + THREE + USAGE + DONE),
    "[DONE] twice": (Check.RECEIPT_RESPONSE, STREAM + DONE),
    "an event added": (Check.RECEIPT_RESPONSE, ONE + TWO + b"data: {}\n\n" + THREE + USAGE + DONE),
    "a comment added": (Check.RECEIPT_RESPONSE, ONE + TWO + b": ping\n\n" + THREE + USAGE + DONE),
    "a blank line added": (Check.RECEIPT_RESPONSE, ONE + b"\n" + TWO + THREE + USAGE + DONE),
    "[DONE] spelled in another way": (Check.RECEIPT_RESPONSE, ONE + TWO + THREE + USAGE + b"data:[DONE]\n\n"),
    "an early [DONE]": (Check.RECEIPT_RESPONSE, ONE + DONE + TWO + THREE + USAGE + DONE),
    "an error in place of the end": (Check.RECEIPT_RESPONSE, ONE + b'data: {"error":{"message":"x"}}\n\n'),
    "nothing but the receipt": (Check.RECEIPT_RESPONSE, b""),
    "two receipts": (Check.RECEIPT_RESPONSE, STREAM + COMMENTED),
}


@pytest.mark.parametrize("case", STREAM_TABLE)
def test_stream(case: str) -> None:
    """Whatever is done to the events, their receipt does not fit any more."""
    check, events = STREAM_TABLE[case]
    assert refused(stream, events + COMMENTED) is check


STREAM_RECEIPTS: dict[str, tuple[Check, Callable[[], object]]] = {
    "the receipt in the middle": (Check.RECEIPT_RESPONSE, lambda: stream(ONE + COMMENTED + TWO + DONE)),
    "the receipt of another request": (
        Check.RECEIPT_REQUEST,
        lambda: stream(STREAM + ENCLAVE.comment(replace(EXCHANGE, body=b"{}"), STREAM)),
    ),
    "a stream and its receipt replayed to a second identical request": (
        Check.RECEIPT_REQUEST,
        lambda: stream(STREAM + COMMENTED, SECOND),
    ),
    "the receipt of another enclave": (
        Check.RECEIPT_SIGNATURE,
        lambda: stream(STREAM + STRANGER.comment(EXCHANGE, STREAM)),
    ),
    "the receipt of another model": (
        Check.RECEIPT_MODEL,
        lambda: stream(STREAM + ENCLAVE.comment(EXCHANGE, STREAM, model=OTHER_MODEL)),
    ),
    "the receipt of an error": (
        Check.RECEIPT_STATUS,
        lambda: stream(STREAM + ENCLAVE.comment(EXCHANGE, STREAM, status=500, outcome=Outcome.ERROR)),
    ),
}


@pytest.mark.parametrize("case", STREAM_RECEIPTS)
def test_receipts_of_streams(case: str) -> None:
    """In another place, or of another exchange, enclave or model."""
    check, attempt = STREAM_RECEIPTS[case]
    assert refused(attempt) is check
