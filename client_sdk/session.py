"""Trust in one enclave over time, without I/O: unverified → verified(until) → unverified again, or refused.

A session makes the nonces, takes the bytes that came back and the time, decides, and holds the verdict with its
deadline. Nobody gets a verdict from it that is not valid at the very moment of asking. Some time before the deadline it
is due for renewal: a renewal that fails takes nothing away until the deadline, and nothing is left at it. A session opens
no connection and reads no clock; `kept` does both.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from attestation._b64 import b64url_encode
from attestation.binding import NONCE_BYTES
from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.evidence import Evidence, parse_evidence
from attestation.policy import Policy
from attestation.verdict import Verdict
from attestation.verify import verify

MAX_AGE = timedelta(hours=1)  # how long one attestation is relied on, if nothing in it ends earlier
HOLD = timedelta(seconds=1)  # how long a failure answers for those who waited on the same attempt
RENEW_FROM, RENEW_TO = (
    0.6,
    0.8,
)  # of a verdict's life: somewhere between, so that clients do not come all at once
RETRY = 0.25  # of what is left of it, after a renewal that failed
MAX_SKEW = timedelta(
    minutes=1
)  # clocks that differ by more are named when the time is what a refusal is about


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
    renew: datetime  # from here on somebody should ask for evidence again
    failure: AttestationError | None = None  # why the last renewal failed


@dataclass(frozen=True, slots=True)
class Refused:
    """The last attempt failed. Whoever asks before `until` gets the same error without another attempt."""

    error: AttestationError
    since: datetime
    until: datetime


State = Unverified | Verified | Refused


class Session:
    """One enclave's state. Any thread may ask; `kept` lets only one at a time change it."""

    def __init__(self, policy: Policy, *, max_age: timedelta = MAX_AGE) -> None:
        self.policy = policy  # another one counts from the next evidence on
        self._max_age = max_age
        self._nonce: bytes | None = None
        self.state: State = Unverified()

    def current(self, now: datetime) -> Verdict | None:
        """The verdict that is valid now; None when an attestation has to come first. Raises what was just refused."""
        state = self.state
        if isinstance(state, Verified) and state.verdict.verified_at <= now < state.until:
            return state.verdict
        if isinstance(state, Refused) and state.since <= now < state.until:
            raise state.error.with_traceback(None)
        return None

    def due(self, now: datetime) -> bool:
        """There is a valid verdict, and it is time for the next one."""
        state = self.state
        return isinstance(state, Verified) and state.renew <= now < state.until

    def hurry(self, now: datetime) -> None:
        """Something says that the enclave will change its keys: the next verdict is due now."""
        if isinstance(self.state, Verified):
            self.state = replace(self.state, renew=min(self.state.renew, now))

    def begin(self) -> bytes:
        """The nonce to ask for evidence with. It serves once."""
        self._nonce = make_nonce()
        return self._nonce

    def accept(
        self,
        document: bytes,
        answered: str | None,
        now: datetime,
        theirs: datetime | None = None,
        also: Callable[[Verdict], None] | None = None,
    ) -> Verdict:
        """Judge the evidence that came for the nonce of `begin`; `also` may refuse the verdict before anybody has it.

        `answered` is its Attested-Nonce header. `theirs` is the enclave's clock as the answer's Date has it: nobody has
        signed it, and nothing is decided by it but how a refusal is explained.
        """
        nonce, self._nonce = self._nonce, None
        if nonce is None:
            raise RuntimeError("begin() makes the nonce that accept() needs")
        try:
            _check_nonce(nonce, answered)
            evidence = parse_evidence(document)
            try:
                verdict = verify(evidence, self.policy, nonce=nonce, now=now)
            except AttestationError as error:
                self._check_clock(evidence, nonce, now, theirs, error)
                raise
            if also is not None:
                also(verdict)
        except AttestationError as error:
            self.fail(error, now)
            raise
        until = min(verdict.valid_until, now + self._max_age)
        share = random.uniform(RENEW_FROM, RENEW_TO)  # noqa: S311 - spreads load, and keeps nothing secret
        self.state = Verified(verdict, until, now + (until - now) * share)
        return verdict

    def fail(self, error: AttestationError, now: datetime) -> None:
        """No verdict came of it. A valid one stays until its deadline, and then there is none."""
        match self.state:
            case Verified(verdict, until) if verdict.verified_at <= now < until:
                renew = now + max((until - now) * RETRY, HOLD)
                self.state = replace(self.state, renew=renew, failure=error)
            case _:
                self.state = Refused(error, now, now + HOLD)

    def forget(self) -> None:
        """The enclave does not answer under the verdict's keys any more: it holds for nobody."""
        if isinstance(self.state, Verified):
            self.state = Unverified()

    def _check_clock(
        self,
        evidence: Evidence,
        nonce: bytes,
        now: datetime,
        theirs: datetime | None,
        error: AttestationError,
    ) -> None:
        """Raise by the clock's name when the evidence was refused now, and is good at the enclave's time."""
        if theirs is None or abs(theirs - now) <= MAX_SKEW:
            return
        try:
            verify(evidence, self.policy, nonce=nonce, now=theirs)
        except AttestationError:
            return
        ahead = "ahead of" if now > theirs else "behind"
        raise VerificationError(
            Check.SESSION_CLOCK,
            f"this machine's clock ({now:%Y-%m-%dT%H:%M:%SZ}) is {abs(now - theirs)} {ahead} the enclave's "
            f"({theirs:%Y-%m-%dT%H:%M:%SZ}), and the evidence is good only at the latter: {error}",
            advice="Set this machine's clock, or have the operator set the enclave's; evidence is never judged by another clock",
        ) from error


def _check_nonce(nonce: bytes, answered: str | None) -> None:
    expected = b64url_encode(nonce)
    if answered != expected:
        raise VerificationError(
            Check.BINDING_NONCE,
            f"asked for evidence for the nonce {expected}, the answer names {answered or 'none'}",
            advice="The answer was cached or altered on the way; ask the enclave directly",
        )
