"""Trust in one enclave over time, without I/O: unverified → verified(until) → unverified again, or refused.

A session makes the nonces, takes the bytes that came back and the time, decides, and holds the verdict with its
deadline. Nobody gets a verdict from it that is not valid at the very moment of asking. It opens no connection and
reads no clock; `transport` does both.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from attestation._b64 import b64url_encode
from attestation.binding import NONCE_BYTES
from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.evidence import parse_evidence
from attestation.policy import Policy
from attestation.verdict import Verdict
from attestation.verify import verify

MAX_AGE = timedelta(hours=1)  # how long one attestation is relied on, if nothing in it ends earlier
HOLD = timedelta(seconds=1)  # how long a failure answers for those who waited on the same attempt


def make_nonce() -> bytes:
    """32 bytes that nobody has seen."""
    return secrets.token_bytes(NONCE_BYTES)


@dataclass(frozen=True, slots=True)
class Unverified:
    """Nothing is known of the enclave; nothing may be sent."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The enclave was accepted; requests may leave until the deadline, and not at it."""

    verdict: Verdict
    until: datetime


@dataclass(frozen=True, slots=True)
class Refused:
    """The last attempt failed. Whoever asks before `until` gets the same error without another attempt."""

    error: AttestationError
    since: datetime
    until: datetime


class Session:
    """One enclave's state. Not locked: the transport lets one attestation run at a time."""

    def __init__(self, policy: Policy, *, max_age: timedelta = MAX_AGE) -> None:
        self._policy = policy
        self._max_age = max_age
        self._nonce: bytes | None = None
        self.state: Unverified | Verified | Refused = Unverified()

    def current(self, now: datetime) -> Verdict | None:
        """The verdict that is valid now; None when an attestation has to come first. Raises what was just refused."""
        match self.state:
            case Verified(verdict, until) if verdict.verified_at <= now < until:
                return verdict
            case Refused(error, since, until) if since <= now < until:
                raise error.with_traceback(None)
        return None

    def begin(self) -> bytes:
        """The nonce to ask for evidence with. It serves once."""
        self._nonce = make_nonce()
        return self._nonce

    def accept(self, document: bytes, answered: str | None, now: datetime) -> Verdict:
        """Judge the evidence that came for the nonce of `begin`; `answered` is its Attested-Nonce header."""
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise RuntimeError("begin() makes the nonce that accept() needs")
        try:
            _check_nonce(nonce, answered)
            verdict = verify(parse_evidence(document), self._policy, nonce=nonce, now=now)
        except AttestationError as error:
            self.fail(error, now)
            raise
        self.state = Verified(verdict, min(verdict.valid_until, now + self._max_age))
        return verdict

    def fail(self, error: AttestationError, now: datetime) -> None:
        """No verdict came of it. Whatever was trusted before is not any more."""
        self.state = Refused(error, now, now + HOLD)


def _check_nonce(nonce: bytes, answered: str | None) -> None:
    expected = b64url_encode(nonce)
    if answered != expected:
        raise VerificationError(
            Check.BINDING_NONCE,
            f"asked for evidence for the nonce {expected}, the answer names {answered or 'none'}",
            advice="The answer was cached or altered on the way; ask the enclave directly",
        )
