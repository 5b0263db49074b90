"""Audits: saved exchanges verified again, offline and years later, on the auditor's own terms.

An audit verifies the receipt, the evidence as of the receipt's time or another one, and the bytes where they were saved.
The time of a receipt is the enclave's own word. Whoever got hold of its key later can date receipts back to it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from attestation.binding import Statement, parse_statement
from attestation.bundle import Bundle, SavedExchange
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import AttestationError, VerificationError
from attestation.evidence import Evidence, parse_evidence
from attestation.parts import RunningParts
from attestation.policy import Policy
from attestation.receipt import COMMENT, Outcome, Receipt, RunningDigest, verify_receipt
from attestation.tlog import check_logged, log_key
from attestation.verdict import Verdict
from attestation.verify import verify

MAX_KNOWN = 64  # enclaves whose verdicts an auditor remembers
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One exchange that held. The receipt says nothing about bytes that were not compared with it."""

    receipt: Receipt
    verdict: Verdict  # on the evidence, reached at the receipt's time or at one since which nothing changed
    request_compared: bool
    response_compared: bool
    logged: bool  # there was a proof that the receipt is in the enclave's log, and it holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """A bundle of which everything held."""

    verdict: Verdict
    exchanges: tuple[Audited, ...]


def audit(bundle: Bundle, policy: Policy, *, at: datetime | None = None) -> Audit:
    """Everything in `bundle` holds, the evidence as of each receipt's time or `at`; or the first error."""
    auditor = Auditor(policy, at=at)
    exchanges = tuple(auditor.audit(bundle, exchange) for exchange in bundle.exchanges)
    times = [exchange.receipt.time for exchange in exchanges]
    verdict = auditor.verdict(bundle, at or datetime.fromtimestamp(min(times), UTC))
    return Audit(verdict=verdict, exchanges=exchanges)


def judge_again(
    bundle: Bundle, policy: Policy, *, now: datetime, collateral: Collateral | None = None
) -> Verdict:
    """What the bundle's evidence is worth at another time: with other collateral, or its own, which may have expired."""
    evidence = parse_evidence(bundle.evidence)
    return verify(evidence, policy, nonce=bundle.nonce, now=now, collateral=collateral)


@dataclass(slots=True)
class _Known:
    """One enclave's evidence, parsed, and the span of time for which it is known to be accepted."""

    evidence: Evidence
    statement: Statement
    nonce: bytes
    accepted: tuple[Verdict, Verdict] | None = None  # the earliest and the latest

    def at(self, when: datetime) -> Verdict | None:
        """A verdict that stands for `when`, if one is known."""
        if self.accepted is None:
            return None
        first, last = self.accepted
        return first if first.verified_at <= when <= last.verified_at else None

    def accept(self, verdict: Verdict) -> None:
        both = [*(self.accepted or ()), verdict]
        self.accepted = min(both, key=_verified_at), max(both, key=_verified_at)


class Auditor:
    """Audits many exchanges on the same terms, and judges each enclave's evidence only as often as it must.

    Every rule about dates, of vendors and of policies, is a span of time; so what is accepted at two times is
    accepted at every time between them.
    """

    def __init__(self, policy: Policy, *, at: datetime | None = None) -> None:
        self._policy, self._at = policy, at
        self._known: dict[tuple[bytes, bytes], _Known] = {}

    def audit(self, bundle: Bundle, exchange: SavedExchange) -> Audited:
        """`exchange`, which is one of `bundle`, holds; or the first error."""
        known = self._know(bundle)
        receipt = verify_receipt(exchange.receipt, known.statement.keys.receipt_ed25519)
        time = _time(receipt, known.statement)
        verdict = self._judge(known, self._at or time)
        _check_receipt(receipt, exchange, verdict)
        if exchange.log is not None:
            check_logged(exchange.log, exchange.receipt, log_key(known.statement))
        return Audited(
            receipt=receipt,
            verdict=verdict,
            request_compared=exchange.request is not None,
            response_compared=exchange.response is not None,
            logged=exchange.log is not None,
        )

    def verdict(self, bundle: Bundle, when: datetime) -> Verdict:
        """The verdict on the bundle's evidence, reached at `when` or at a time since which nothing changed."""
        return self._judge(self._know(bundle), when)

    def _know(self, bundle: Bundle) -> _Known:
        key = (bundle.nonce, bundle.evidence)
        if (known := self._known.get(key)) is None:
            evidence = parse_evidence(bundle.evidence)
            known = _Known(evidence, parse_statement(evidence.statement), bundle.nonce)
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known

    def _judge(self, known: _Known, when: datetime) -> Verdict:
        if (verdict := known.at(when)) is not None:
            return verdict
        verdict = verify(known.evidence, self._policy, nonce=known.nonce, now=when)
        known.accept(verdict)
        ahead = verdict.valid_until - _SECOND
        if ahead > when and known.at(ahead) is None:  # so that later receipts need no look
            with suppress(AttestationError):  # where a policy asks for younger collateral, none is spared
                known.accept(verify(known.evidence, self._policy, nonce=known.nonce, now=ahead))
        return verdict


def _verified_at(verdict: Verdict) -> datetime:
    return verdict.verified_at


def _time(receipt: Receipt, statement: Statement) -> datetime:
    """The receipt's time, which lies in the statement's own span."""
    if statement.not_before <= receipt.time <= statement.not_after:
        try:
            return datetime.fromtimestamp(receipt.time, UTC)
        except (ValueError, OverflowError, OSError):
            pass
    raise VerificationError(
        Check.RECEIPT_TIME,
        f"signed at {receipt.time} by the enclave's clock; its statement is valid from {statement.not_before} to "
        f"{statement.not_after}",
        advice="The receipt was not signed while its enclave was attested; it proves nothing",
    )


def _check_receipt(receipt: Receipt, exchange: SavedExchange, verdict: Verdict) -> None:
    """The authentic receipt speaks of the verified statement and of the saved bytes."""
    _equal(Check.RECEIPT_STATEMENT, "the statement digest", verdict.statement_digest, receipt.statement)
    _equal(Check.RECEIPT_MODEL, "the model digest", verdict.statement.model.digest, receipt.model.digest)
    if (receipt.outcome is Outcome.ERROR) != (receipt.response.status >= 400):
        raise VerificationError(
            Check.RECEIPT_OUTCOME,
            f"the enclave signed the outcome {receipt.outcome!s} with the status {receipt.response.status}",
        )
    if exchange.request is not None:
        asked = exchange.request
        if receipt.outcome is Outcome.ERROR:  # a refusal covers what had been read (docs/protocol.md §4)
            asked = asked[: max(receipt.request.length, 0)]
        digest = RunningDigest(exchange.nonce, asked)
        _bytes_equal(Check.RECEIPT_REQUEST, "request", receipt.request, digest)
    if exchange.response is not None:
        comment = COMMENT + exchange.receipt.encode() + b"\n\n"
        digest = RunningDigest(exchange.nonce, exchange.response.removesuffix(comment))
        _bytes_equal(Check.RECEIPT_RESPONSE, "response", receipt.response, digest)
    if receipt.parts is not None and exchange.request is not None and exchange.response is not None:
        _check_parts(receipt.parts, exchange.nonce, exchange.request, exchange.response)


def _check_parts(signed: bytes, nonce: bytes, request: bytes, response: bytes) -> None:
    parts = RunningParts(nonce, request)
    parts.answer(response)
    if parts.digest() != signed:
        raise VerificationError(
            Check.RECEIPT_PARTS,
            f"the enclave signed the digest {signed.hex()[:16]}… for all parts, which the saved bytes do not have",
            advice="Nothing can be disclosed of this exchange; its whole bytes are proven all the same",
        )


def _bytes_equal(check: Check, what: str, signed: Any, found: RunningDigest) -> None:
    if (signed.digest, signed.length) != (found.digest(), found.length):
        raise VerificationError(
            check,
            f"for the {what} the enclave signed {signed.length} bytes with digest {signed.digest.hex()[:16]}…; the bundle "
            f"has {found.length} bytes with digest {found.digest().hex()[:16]}…",
            advice=f"The saved {what} is not what the enclave saw, or its nonce was exchanged; do not rely on it",
        )


def _equal(check: Check, what: str, expected: bytes, signed: bytes) -> None:
    if expected != signed:
        raise VerificationError(
            check,
            f"for {what} the enclave signed {signed.hex()}; the bundle's evidence says {expected.hex()}",
            advice="The receipt and the evidence belong to two enclaves, or to two boots of one",
        )
