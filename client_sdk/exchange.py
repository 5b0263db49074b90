"""One request as it was sent, and what a receipt has to say to be about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from attestation._b64 import b64url_encode
from attestation.bundle import SavedExchange
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.receipt import Outcome, Receipt, Request, RunningDigest, check_receipt, verify_receipt
from attestation.verdict import Verdict

DO_NOT_USE = "The answer was altered on the way, or belongs to another request; do not use it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as it was sent, and the verdict under which it was sent."""

    verdict: Verdict
    nonce: bytes
    method: str
    path: str
    body: bytes

    def check_nonce(self, answered: str | None) -> None:
        """The answer names this request's nonce."""
        if answered != b64url_encode(self.nonce):
            raise VerificationError(
                Check.RECEIPT_REQUEST,
                f"the answer is for the nonce {answered or '(none)'}, the request had {b64url_encode(self.nonce)}",
                advice=DO_NOT_USE,
            )

    def authentic(self, token: str) -> Receipt:
        """The receipt in `token`, when the attested enclave signed it, whatever it is about."""
        return verify_receipt(token, self.verdict.statement.keys.receipt_ed25519)

    def check(self, receipt: Receipt, status: int, response: RunningDigest, now: datetime) -> Receipt:
        """The authentic `receipt` is about exactly this exchange."""
        # An enclave that refused before it had read everything signs what it had read (docs/protocol.md §4).
        body = self.body[: receipt.request.length] if receipt.outcome is Outcome.ERROR else self.body
        digest = RunningDigest(self.nonce, body)
        check_receipt(
            receipt,
            statement=self.verdict.statement_digest,
            model_digest=self.verdict.statement.model.digest,
            request=Request(method=self.method, path=self.path, digest=digest.digest(), length=digest.length),
            status=status,
            response=response,
            now=now,
        )
        if (receipt.outcome is Outcome.ERROR) != (status >= 400):
            raise wrong_outcome(receipt, f"the status is {status}")
        return receipt

    def saved(self, token: str, response: bytes) -> SavedExchange:
        """What an auditor needs of this exchange."""
        return SavedExchange(receipt=token, nonce=self.nonce, request=self.body, response=response)


def wrong_outcome(receipt: Receipt, but: str) -> VerificationError:
    return VerificationError(
        Check.RECEIPT_OUTCOME,
        f"the enclave signed the outcome {receipt.outcome!s}: {but}",
        advice=DO_NOT_USE,
    )
