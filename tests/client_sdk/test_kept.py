"""A kept session against this machine's two clocks: the calendar, and the time that has passed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import PolicyError, UnavailableError
from attestation.release import Revoked
from attestation.release_policy import ReleasePolicy
from client_sdk.kept import Fetched, KeptSession
from client_sdk.policy_toml import dump_policy
from client_sdk.session import HOLD, MAX_AGE, Refused, Session
from client_sdk.terms import PolicyLike, Terms
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave
from tests.client_sdk.trusting import settled
from tests.processes import until

ENCLAVE = PretendEnclave()
HOUR = MAX_AGE.total_seconds()
BAD = Revoked(id="1", reason="CVE-2026-0001", tdx=POLICY.tdx.measurements if POLICY.tdx else ())
ACCEPTS = dump_policy(POLICY)
REVOKES = dump_policy(replace(POLICY, release=ReleasePolicy(revoked=(BAD,))))


@dataclass
class Machine:
    """The two clocks, and how often evidence was asked for."""

    now = NOW
    passed = 1000.0
    asked = 0
    reachable = True

    def fetch(self, nonce: bytes) -> Fetched:
        self.asked += 1
        if not self.reachable:
            raise UnavailableError(Check.EVIDENCE_FETCH, "nobody there")
        return Fetched(ENCLAVE.document(nonce, self.now), b64url_encode(nonce), None)

    def kept(self, policy: PolicyLike = POLICY) -> KeptSession:
        return KeptSession(Session(POLICY), Terms(policy), lambda: self.now, lambda: self.passed)


def test_a_clock_that_is_set_back_lengthens_nothing() -> None:
    """The calendar says that the verdict is young, and its hour has passed: it is over."""
    machine = Machine()
    kept = machine.kept()
    first = kept.verdict(machine.fetch)
    machine.passed += HOUR - 1
    assert kept.current() is first
    machine.passed += 1
    assert kept.current() is None
    assert kept.verdict(machine.fetch) is not first
    assert machine.asked == 2
    assert kept.current() is not None


def test_when_its_time_has_passed_nothing_is_left_of_it() -> None:
    """A renewal that fails then does not bring the old verdict back, and those who waited share the refusal."""
    machine = Machine()
    kept = machine.kept()
    kept.verdict(machine.fetch)
    machine.passed += HOUR
    machine.reachable = False
    for _ in range(3):
        with pytest.raises(UnavailableError):
            kept.verdict(machine.fetch)
    assert machine.asked == 2
    assert isinstance(kept.state, Refused)


def test_a_machine_that_slept_goes_by_the_calendar() -> None:
    """The time that has passed may stand still in sleep; the deadline does not."""
    machine = Machine()
    kept = machine.kept()
    kept.verdict(machine.fetch)
    machine.now += MAX_AGE - timedelta(seconds=1)
    assert kept.current() is not None
    machine.now += timedelta(seconds=1)
    assert kept.current() is None


def test_a_renewal_counts_from_its_own_time() -> None:
    """Each verdict has its own hour."""
    machine = Machine()
    kept = machine.kept()
    first = kept.verdict(machine.fetch)
    machine.now += MAX_AGE * 0.9
    machine.passed += HOUR * 0.9
    second = kept.verdict(machine.fetch, stale=first, before=1)
    machine.now += MAX_AGE * 0.9
    machine.passed += HOUR * 0.9
    assert kept.current() is second


def test_a_policy_that_changes_holds_from_the_next_request(tmp_path: Path) -> None:
    """What was reached with the old file ends with it, whatever time is left; what is refused then is never sent."""
    machine, file = Machine(), tmp_path / "policy.toml"
    file.write_text(ACCEPTS)
    kept = machine.kept(file)
    first = kept.verdict(machine.fetch)
    assert kept.ready() is first
    file.write_text(REVOKES)
    assert kept.ready() is None
    with pytest.raises(PolicyError, match="CVE-2026-0001"):
        kept.verdict(machine.fetch)
    file.write_text(ACCEPTS)
    machine.now += HOLD
    assert kept.verdict(machine.fetch) is kept.ready()
    assert machine.asked == 3


def test_a_renewal_that_fails_does_not_make_a_changed_policy_the_verdicts(tmp_path: Path) -> None:
    """A verdict goes with the files that it was reached with, though others were read since in vain."""
    machine, file = Machine(), tmp_path / "policy.toml"
    file.write_text(ACCEPTS)
    kept = machine.kept(file)
    kept.verdict(machine.fetch)
    file.write_text(REVOKES)
    kept.hurry(machine.fetch)
    until(lambda: machine.asked == 2)
    until(settled)
    assert kept.current() is not None
    assert kept.ready() is None


def test_a_policys_file_that_goes_away_refuses(tmp_path: Path) -> None:
    """A file that is gone is no policy that was kept."""
    machine, file = Machine(), tmp_path / "policy.toml"
    file.write_text(ACCEPTS)
    kept = machine.kept(file)
    kept.verdict(machine.fetch)
    file.unlink()
    with pytest.raises(UnavailableError, match="cannot read the policy"):
        kept.verdict(machine.fetch)
