"""The session: no verdict is given out that is not valid at the moment of asking."""

from __future__ import annotations

from datetime import timedelta

import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError, UnavailableError, VerificationError
from attestation.policy import Policy
from attestation.tdx.policy import TdxPolicy
from client_sdk.session import HOLD, MAX_AGE, Refused, Session, Unverified, Verified
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

SECOND = timedelta(seconds=1)


def test_starts_unverified_and_becomes_verified() -> None:
    """Nothing is trusted before evidence was accepted; then the verdict holds, with the enclave's keys."""
    enclave, session = PretendEnclave(), Session(POLICY)
    assert session.state == Unverified()
    assert session.current(NOW) is None
    nonce = session.begin()
    verdict = session.accept(enclave.document(nonce), b64url_encode(nonce), NOW)
    assert session.current(NOW) is verdict
    assert verdict.statement.keys.tls_spki_sha256 == enclave.tls_spki
    assert verdict.simulated


def test_a_verdict_ends_at_its_greatest_age() -> None:
    """Up to the deadline the verdict is given out, at it no more."""
    session = PretendEnclave().verified()
    assert session.current(NOW + MAX_AGE - SECOND) is not None
    assert session.current(NOW + MAX_AGE) is None


def test_a_verdict_ends_with_the_statement() -> None:
    """A statement that ends before the greatest age ends the verdict."""
    session = PretendEnclave(not_after=NOW + timedelta(minutes=2)).verified()
    assert session.current(NOW + timedelta(minutes=2) - SECOND) is not None
    assert session.current(NOW + timedelta(minutes=2)) is None


def test_a_clock_set_back_ends_a_verdict() -> None:
    """A verdict from the future says nothing about how old it is."""
    session = PretendEnclave().verified()
    assert session.current(NOW - SECOND) is None


def test_a_shorter_age_can_be_asked_for() -> None:
    """`max_age` bounds how long one attestation is relied on."""
    enclave, session = PretendEnclave(), Session(POLICY, max_age=timedelta(seconds=30))
    nonce = session.begin()
    session.accept(enclave.document(nonce), b64url_encode(nonce), NOW)
    assert session.current(NOW + timedelta(seconds=29)) is not None
    assert session.current(NOW + timedelta(seconds=30)) is None


def test_a_nonce_serves_once() -> None:
    """The same answer is not accepted twice, and none is accepted unasked."""
    enclave, session = PretendEnclave(), Session(POLICY)
    nonce = session.begin()
    document = enclave.document(nonce)
    session.accept(document, b64url_encode(nonce), NOW)
    with pytest.raises(RuntimeError):
        session.accept(document, b64url_encode(nonce), NOW)
    assert session.begin() != session.begin()


@pytest.mark.parametrize("answered", [None, "", b64url_encode(bytes(32))])
def test_an_answer_for_another_nonce_is_refused_by_name(answered: str | None) -> None:
    """What the gateway says it answered must be the nonce that was asked."""
    session = Session(POLICY)
    nonce = session.begin()
    with pytest.raises(VerificationError) as caught:
        session.accept(PretendEnclave().document(nonce), answered, NOW)
    assert caught.value.check is Check.BINDING_NONCE


def test_evidence_of_another_nonce_is_refused_whatever_it_is_called() -> None:
    """A replayed document with a matching header does not get past the binding."""
    session = Session(POLICY)
    nonce = session.begin()
    with pytest.raises(VerificationError) as caught:
        session.accept(PretendEnclave().document(bytes(32)), b64url_encode(nonce), NOW)
    assert caught.value.check is Check.BINDING_REPORT_DATA


def test_a_refusal_ends_trust_and_is_held_for_those_who_waited() -> None:
    """After a refusal nothing is current; for a moment everybody gets the same error, then the next may ask again."""
    session = PretendEnclave().verified()
    nonce = session.begin()
    with pytest.raises(MalformedError) as caught:
        session.accept(b"{}", b64url_encode(nonce), NOW)
    assert isinstance(session.state, Refused)
    with pytest.raises(MalformedError) as again:
        session.current(NOW + HOLD - timedelta(milliseconds=1))
    assert again.value is caught.value
    assert session.current(NOW + HOLD) is None
    assert session.current(NOW - SECOND) is None


def test_an_unreachable_enclave_is_not_trusted_on() -> None:
    """A failed renewal fails closed: the old verdict does not come back."""
    session = PretendEnclave().verified()
    session.fail(UnavailableError(Check.EVIDENCE_FETCH, "no route"), NOW)
    with pytest.raises(UnavailableError):
        session.current(NOW)
    assert session.current(NOW + HOLD) is None


def test_it_recovers() -> None:
    """A refused session becomes verified again by good evidence."""
    enclave, session = PretendEnclave(), Session(POLICY)
    session.fail(UnavailableError(Check.EVIDENCE_FETCH, "no route"), NOW)
    nonce = session.begin()
    session.accept(enclave.document(nonce), b64url_encode(nonce), NOW)
    assert isinstance(session.state, Verified)


def test_the_policy_decides() -> None:
    """Authentic evidence of a machine that the policy does not name is refused with every violation."""
    session = Session(Policy(roots=POLICY.roots, tdx=TdxPolicy()))
    nonce = session.begin()
    with pytest.raises(PolicyError) as caught:
        session.accept(PretendEnclave().document(nonce), b64url_encode(nonce), NOW)
    assert {v.check for v in caught.value.violations} >= {
        Check.POLICY_MODEL,
        Check.POLICY_CONFIG,
        Check.POLICY_GPU,
    }
