"""Where and until when a release is accepted: machines, ends, and what an ended release served."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.errors import PolicyError
from attestation.policy import Policy, parse_policy
from attestation.references import merge
from attestation.release import Limited, Machines, Release
from attestation.release_policy import ReleasePolicy
from attestation.snp import SnpPolicy
from attestation.snp.report import SigningKey
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from attestation.verify import verify
from client_sdk.lock import lock
from client_sdk.policy_toml import dump_policy
from tests.attestation.releases import MEASURED, REFERENCES, RELEASE, claims_of, snp_claims, tdx_claims
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave


@pytest.mark.parametrize("listed", [True, False])
def test_a_release_on_amds_machines(listed: bool) -> None:
    """A release that names machines is accepted on those alone, another release anywhere."""
    claims = snp_claims()
    assert claims.chip_id
    release = replace(
        RELEASE,
        snp=frozenset({claims.measurement}),
        machines=Machines(chip_ids=frozenset({claims.chip_id if listed else bytes(64)})),
    )
    policy = merge(Policy(snp=SnpPolicy()), replace(REFERENCES, releases=(release,))).release
    assert [v.check for v in policy.check(claims, NOW)] == ([] if listed else [Check.POLICY_MACHINE])
    elsewhere = replace(release, snp=frozenset({bytes(48)}), machines=Machines())
    policy = merge(Policy(snp=SnpPolicy()), replace(REFERENCES, releases=(elsewhere,))).release
    assert policy.check(claims, NOW) == []


@pytest.mark.parametrize("listed", [True, False])
def test_a_release_on_intels_machines(listed: bool) -> None:
    """By their PPID. A list that names AMD's chips only has none of Intel's."""
    claims = tdx_claims()
    ppids = frozenset({claims.platform.ppid}) if listed else frozenset[bytes]()
    release = replace(RELEASE, tdx=(TdxMeasurement(mrtd=claims.td.mrtd),), machines=Machines(ppids=ppids))
    policy = merge(Policy(tdx=TdxPolicy()), replace(REFERENCES, releases=(release,))).release
    assert [v.check for v in policy.check(claims, NOW)] == ([] if listed else [Check.POLICY_MACHINE])


def test_a_vlek_names_no_machine() -> None:
    """A cloud's key signs for every machine of the cloud: a release bound to machines cannot be seen to run on one."""
    claims = snp_claims(SigningKey.VLEK)
    assert claims.chip_id is None
    bound = Limited(id="1", machines=Machines(chip_ids=frozenset({bytes(64)})))
    (violation,) = bound.check(claims, NOW)
    assert violation.check is Check.POLICY_MACHINE
    assert "VLEK" in violation.found


def test_a_vtpms_release_on_machines() -> None:
    """The machine under the vTPM counts, its image by the PCRs."""
    claims = claims_of()
    bound = Limited(id="1", machines=Machines(chip_ids=frozenset({bytes(8)})), vtpm=(MEASURED,))
    policy = ReleasePolicy(limited=(bound,))
    assert [v.check for v in policy.check(claims.hardware, NOW, claims)] == [Check.POLICY_MACHINE]
    assert policy.check(claims.hardware, NOW) == []


def limited_to(*limits: tuple[int | None, Machines | None]) -> Policy:
    """A policy under references of releases that all measure what the pretended enclave does."""
    measured = (TdxMeasurement(mrtd=tdx_claims().td.mrtd),)
    releases = tuple(
        Release(id=str(number), tdx=measured, until=until, machines=machines)
        for number, (until, machines) in enumerate(limits)
    )
    return merge(POLICY, replace(REFERENCES, releases=releases))


LATER = int(NOW.timestamp()) + 600
NOWHERE = Machines()


@pytest.mark.parametrize(
    ("limits", "refused"),
    [
        ([(LATER, None)], []),
        ([(LATER - 600, None)], [Check.POLICY_RETIRED]),
        ([(LATER - 600, NOWHERE)], [Check.POLICY_RETIRED, Check.POLICY_MACHINE]),
        ([(LATER - 600, None), (LATER, None)], []),
        ([(LATER - 600, None), (None, None)], []),
        ([(LATER - 600, None), (LATER, NOWHERE)], [Check.POLICY_RETIRED, Check.POLICY_MACHINE]),
        ([(None, NOWHERE), (None, None)], []),
    ],
    ids=["in force", "ended", "ended elsewhere", "one left", "one for good", "neither", "one anywhere"],
)
def test_limits(limits: list[tuple[int | None, Machines | None]], refused: list[Check]) -> None:
    """A release ends at its time; where several measure the same, one within its limits is enough."""
    release = limited_to(*limits).release
    assert [v.check for v in release.check(tdx_claims(), NOW)] == refused


def test_a_verdict_ends_with_its_release() -> None:
    """The last of those that measure the same counts, and a machine that no release limits ends with the references."""
    nonce = bytes(32)
    for limits, ends in (
        ([(LATER, None), (LATER - 300, None)], LATER),
        ([(LATER, None), (LATER + 300, NOWHERE)], LATER),
    ):
        found = verify(PretendEnclave().evidence(nonce), limited_to(*limits), nonce=nonce, now=NOW)
        assert found.valid_until == datetime.fromtimestamp(ends, UTC)
    endless = limited_to((LATER, None), (None, None)).release
    assert endless.ends(tdx_claims(), NOW) == datetime.fromtimestamp(REFERENCES.expires, UTC)
    assert ReleasePolicy().ends(tdx_claims(), NOW) is None


STATEMENT = parse_statement(PretendEnclave().statement)
NOTHING = replace(POLICY.statement, model_digests=frozenset(), any_model=False)


def serving(*releases: Release, own: Policy = POLICY) -> Policy:
    """A policy under references in which the machine's own measurement never ends, and these releases serve something."""
    runs = Release(id="runs", tdx=(TdxMeasurement(mrtd=tdx_claims().td.mrtd),))
    return merge(own, replace(REFERENCES, releases=(runs, *releases)))


@pytest.mark.parametrize("what", ["models", "configs"])
def test_what_an_ended_release_served(what: str) -> None:
    """Its model or configuration on a machine in force is refused too, unless another release or the policy itself accepts it."""
    nonce, evidence = bytes(32), PretendEnclave().evidence(bytes(32))
    one = what[:-1]
    served: dict[str, Any] = {
        what: frozenset({STATEMENT.model.digest if one == "model" else STATEMENT.config})
    }
    nothing: dict[str, Any] = {f"{one}_digests": frozenset(), f"any_{one}": False}
    bare = replace(POLICY, statement=replace(POLICY.statement, **nothing))
    old, new = Release(id="old", until=LATER - 600, **served), Release(id="new", until=LATER, **served)
    with pytest.raises(PolicyError) as error:
        verify(evidence, serving(old, own=bare), nonce=nonce, now=NOW)
    assert [(v.check, v.found.split(" 'old'")[1]) for v in error.value.violations] == [
        (Check.POLICY_RETIRED, f", which was retired at {NOW:%Y-%m-%dT%H:%M:%SZ}")
    ]
    assert verify(
        evidence, serving(old, new, own=bare), nonce=nonce, now=NOW
    ).valid_until == datetime.fromtimestamp(LATER, UTC)
    with pytest.raises(PolicyError):
        verify(evidence, serving(replace(new, machines=NOWHERE), own=bare), nonce=nonce, now=NOW)
    for own in ({f"{one}_digests": served[what]}, {f"any_{one}": True}):
        policy = replace(bare, statement=replace(bare.statement, **own))
        verify(evidence, serving(old, own=policy), nonce=nonce, now=NOW)


def test_a_lock_ends_with_the_model_that_it_pins() -> None:
    """It takes over the limits of whatever release serves the model, and no more of it."""
    evidence, nonce = PretendEnclave().evidence(bytes(32)), bytes(32)
    served = Release(id="new", until=LATER, models=frozenset({STATEMENT.model.digest}))
    accepted = serving(served, own=replace(POLICY, statement=NOTHING))
    locked = lock(verify(evidence, accepted, nonce=nonce, now=NOW), accepted, name="lock", expires=None)
    assert {one.id for one in locked.release.limited} == {"runs", "new"}
    assert parse_policy(dump_policy(locked)) == locked
    with pytest.raises(PolicyError) as error:
        verify(evidence, locked, nonce=nonce, now=datetime.fromtimestamp(LATER, UTC))
    assert {v.check for v in error.value.violations} == {Check.POLICY_RETIRED}


def test_the_epoch_is_the_references_own() -> None:
    """A policy's higher one would hide that older references were put in place of newer ones."""
    policy = replace(POLICY, release=ReleasePolicy(name="mine", epoch=100))
    merged = merge(policy, REFERENCES).release
    assert (merged.name, merged.epoch) == ("acme", REFERENCES.epoch)


def test_limits_are_a_policys_own() -> None:
    """They are written and read as any table of a policy: an end, machines, and no machine at all."""
    ids = Machines(chip_ids=frozenset({bytes(8)}), ppids=frozenset({bytes(16)}))
    policy = limited_to((LATER, ids), (None, NOWHERE), (None, None))
    assert parse_policy(dump_policy(policy)) == policy
