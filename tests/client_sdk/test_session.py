"""The session: no verdict is given out that is not valid at the moment of asking."""

from __future__ import annotations

from datetime import timedelta

import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from attestation.policy import Policy
from attestation.tdx.policy import TdxPolicy
from attestation.verdict import Verdict
from client_sdk.session import (
    HOLD,
    MAX_AGE,
    RENEW_FROM,
    RENEW_TO,
    RETRY,
    Refused,
    Session,
    Unverified,
    Verified,
)
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


def test_a_refusal_is_held_for_those_who_waited() -> None:
    """After a refusal nothing is current; for a moment everybody gets the same error, then the next may ask again."""
    session = Session(POLICY)
    nonce = session.begin()
    with pytest.raises(MalformedError) as caught:
        session.accept(b"{}", b64url_encode(nonce), NOW)
    assert isinstance(session.state, Refused)
    with pytest.raises(MalformedError) as again:
        session.current(NOW + HOLD - timedelta(milliseconds=1))
    assert again.value is caught.value
    assert session.current(NOW + HOLD) is None
    assert session.current(NOW - SECOND) is None


def test_what_else_refuses_a_verdict_does_so_before_anybody_has_it() -> None:
    """A caller's own check sees the verdict first: when it refuses, the session was never verified."""
    enclave, session = PretendEnclave(), Session(POLICY)

    def refuse(verdict: Verdict) -> None:
        assert session.state == Unverified()
        raise VerificationError(Check.POLICY_CONFIG, "seen a newer one")

    nonce = session.begin()
    with pytest.raises(VerificationError):
        session.accept(enclave.document(nonce), b64url_encode(nonce), NOW, None, refuse)
    assert isinstance(session.state, Refused)


# --------------------------------------------------------------------------------------------------------- renewal


def test_a_verdict_is_due_before_it_ends() -> None:
    """Somewhere between three and four fifths of its life, not at the same moment for every client, and not at its end."""
    moments = set()
    for _ in range(8):
        session = PretendEnclave().verified()
        assert isinstance(session.state, Verified)
        share = (session.state.renew - NOW) / MAX_AGE
        assert RENEW_FROM <= share <= RENEW_TO
        assert not session.due(session.state.renew - SECOND)
        assert session.due(session.state.renew)
        assert not session.due(session.state.until), "then it has ended"
        moments.add(share)
    assert len(moments) > 1


def test_nothing_is_due_without_a_verdict() -> None:
    """What was never verified, or was refused, is attested when somebody asks, and not before."""
    session = Session(POLICY)
    assert not session.due(NOW)
    session.fail(UnavailableError(Check.EVIDENCE_FETCH, "no route"), NOW)
    assert not session.due(NOW)
    session.hurry(NOW)
    assert not session.due(NOW)


def test_a_hint_makes_a_verdict_due_at_once() -> None:
    """Who hears that keys will change renews now; the verdict holds on."""
    session = PretendEnclave().verified()
    session.hurry(NOW)
    assert session.due(NOW)
    assert session.current(NOW) is not None


@pytest.mark.parametrize("how", ["unreachable", "refused"])
def test_a_failed_renewal_keeps_the_verdict_to_its_deadline_and_not_longer(how: str) -> None:
    """It takes nothing away and prolongs nothing; the reason stands in the state, and at the deadline there is no verdict."""
    session = PretendEnclave().verified()
    verdict, late = session.current(NOW), NOW + MAX_AGE * 0.9
    error = UnavailableError(Check.EVIDENCE_FETCH, "no route")
    nonce = session.begin()
    if how == "unreachable":
        session.fail(error, late)
    else:
        with pytest.raises(MalformedError):
            session.accept(b"{}", b64url_encode(nonce), late)
    assert session.current(late) is verdict
    assert isinstance(session.state, Verified)
    assert session.state.until == NOW + MAX_AGE
    assert session.state.failure is not None
    assert not session.due(late), "the next attempt comes a little later"
    assert session.due(late + MAX_AGE * 0.1 * RETRY)
    assert session.current(NOW + MAX_AGE) is None
    session.fail(error, NOW + MAX_AGE)
    with pytest.raises(UnavailableError) as caught:
        session.current(NOW + MAX_AGE)
    assert caught.value is error


def test_a_good_renewal_takes_the_place_of_the_verdict() -> None:
    """The new verdict has a deadline of its own, and the old failure is forgotten."""
    enclave = PretendEnclave()
    session = enclave.verified()
    session.fail(UnavailableError(Check.EVIDENCE_FETCH, "no route"), NOW)
    later = NOW + MAX_AGE / 2
    nonce = session.begin()
    verdict = session.accept(enclave.document(nonce), b64url_encode(nonce), later)
    assert session.current(later) is verdict
    assert session.current(later + MAX_AGE - SECOND) is verdict
    assert isinstance(session.state, Verified)
    assert session.state.failure is None


def test_an_enclave_that_changed_its_keys_is_trusted_by_nobody() -> None:
    """Once forgotten, a verdict does not come back, not even for a moment after a failure."""
    session = PretendEnclave().verified()
    session.forget()
    assert session.current(NOW) is None
    session.fail(UnavailableError(Check.EVIDENCE_FETCH, "no route"), NOW)
    with pytest.raises(UnavailableError):
        session.current(NOW)
    session.forget()
    assert isinstance(session.state, Refused), "the reason stays"


# ----------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize(
    ("off", "words"),
    [(timedelta(days=-400), "behind"), (timedelta(days=30), "ahead of"), (timedelta(hours=-2), "behind")],
)
def test_a_clock_that_is_off_is_named(off: timedelta, words: str) -> None:
    """Evidence that is good by the enclave's clock and not by ours is refused by the clock's name, both times told."""
    enclave, session = PretendEnclave(), Session(POLICY)
    nonce = session.begin()
    with pytest.raises(VerificationError) as caught:
        session.accept(enclave.document(nonce), b64url_encode(nonce), NOW + off, NOW)
    assert caught.value.check is Check.SESSION_CLOCK
    assert words in caught.value.detail
    assert "2026-11-21T12:00:00Z" in caught.value.detail
    assert isinstance(caught.value.__cause__, AttestationError)
    assert str(caught.value.__cause__.check) in caught.value.detail


def test_the_enclaves_clock_decides_nothing() -> None:
    """A Date that is off does not refuse good evidence, does not accept old evidence, and explains no other failure."""
    enclave = PretendEnclave()
    session = Session(POLICY)
    nonce = session.begin()
    session.accept(enclave.document(nonce), b64url_encode(nonce), NOW, NOW - timedelta(days=400))
    later = NOW + timedelta(days=30)
    for theirs in (None, later, later + timedelta(seconds=59)):
        session = Session(POLICY)
        nonce = session.begin()
        with pytest.raises(AttestationError) as caught:
            session.accept(enclave.document(nonce), b64url_encode(nonce), later, theirs)
        assert caught.value.check is not Check.SESSION_CLOCK
    session = Session(Policy(roots=POLICY.roots, tdx=TdxPolicy()))
    nonce = session.begin()
    with pytest.raises(PolicyError):
        session.accept(enclave.document(nonce), b64url_encode(nonce), NOW, later)


# --------------------------------------------------------------------------------------------------------- recovery


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
