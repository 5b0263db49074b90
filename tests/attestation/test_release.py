"""What a release says beyond its measurements: PCRs, machines, its build, and the events that a boot makes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.binding import parse_statement, report_data
from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError
from attestation.evidence import Evidence
from attestation.policy import Policy, parse_policy
from attestation.references import References, dump_references, dump_statement, merge, parse_references
from attestation.release import (
    Artifact,
    Build,
    Expected,
    ExpectedEvent,
    LeftOut,
    Limited,
    Machines,
    Release,
    Revoked,
)
from attestation.release_policy import ReleasePolicy
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import PCRS, SimulatedVtpm
from attestation.snp import SnpClaims, SnpPolicy
from attestation.snp import verify as verify_snp
from attestation.snp.report import SigningKey
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from attestation.tdx.verify import TdxClaims
from attestation.verify import verify, verify_cpu
from attestation.vtpm import VtpmClaims, VtpmMeasurement, VtpmPolicy
from client_sdk.lock import lock
from client_sdk.policy_toml import dump_policy
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

VM = SimulatedVtpm()
MEASURED = VtpmMeasurement(pcr4=PCRS[4], pcr11=PCRS[11])
OTHER = VtpmMeasurement(pcr4=PCRS[4], pcr11=b"\x11" * 32)
EVENT = ExpectedEvent(register="RTMR1", what="the kernel", source="vmlinuz", sha384=b"\x03" * 48)
RELEASE = Release(
    id="1.4.0",
    tdx=(TdxMeasurement(mrtd=b"\x01" * 48),),
    snp=frozenset({b"\x02" * 48}),
    vtpm=(MEASURED,),
    machines=Machines(chip_ids=frozenset({bytes(64), b"\x01" * 8}), ppids=frozenset({b"\x04" * 16})),
    build=Build(
        id=b"\x05" * 32,
        source="abc",
        source_date_epoch=1,
        target="gateway",
        versions=("kernel 6.12",),
        files=(Artifact(name="vmlinuz", sha256=b"\x06" * 32),),
        firmware=(Artifact(name="OVMF.fd", sha256=b"\x07" * 32, version="2026.08"),),
    ),
    expected=(
        Expected(
            platform="tdx",
            profile="qemu10-edk2-2026.08",
            shape="h200x8",
            boot="direct",
            events=(EVENT, replace(EVENT, sha384=None, sha256=b"\x08" * 32)),
            left_out=(LeftOut(register="RTMR0", reason="the TD HOB is not known"),),
        ),
    ),
)
REFERENCES = References(name="acme", epoch=1, issued=0, expires=2**31, releases=(RELEASE,))


def claims_of(vm: SimulatedVtpm = VM) -> VtpmClaims:
    now = datetime.now(UTC)
    found = verify_cpu(vm.evidence(bytes(32)), vm.collateral(now), vm.roots, now)
    assert isinstance(found, VtpmClaims)
    return found


def snp_claims(signer: SigningKey = SigningKey.VCEK) -> SnpClaims:
    now, machine = datetime.now(UTC), SimulatedSnp(signer=signer)
    report = machine.report(bytes(64))
    return verify_snp(report, machine.collateral(now), (machine.root,), now)


def tdx_claims() -> TdxClaims:
    evidence = PretendEnclave().evidence(bytes(32))
    found = verify_cpu(evidence.cpu, evidence.collateral, POLICY.roots, NOW)
    assert isinstance(found, TdxClaims)
    return found


def taken(policy: Policy) -> Policy:
    """As it judges a machine that is all of the releases at once."""
    return policy.taking(*policy.release.accepted)


def test_the_round_trip_keeps_everything() -> None:
    """Unsigned, as `image measure` writes it, and in the statement that reviewers sign."""
    assert parse_references(dump_references(REFERENCES)) == REFERENCES
    bare = replace(REFERENCES, releases=(Release(id="bare"),))
    assert parse_references(dump_references(bare)) == bare
    assert b'"register":"RTMR1"' in dump_statement(REFERENCES)


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda b: dump_references(REFERENCES)[:-3] + b))
def test_any_bytes_give_references_or_malformed(data: bytes) -> None:
    """Whatever the file holds, only MalformedError comes of parsing it."""
    with suppress(MalformedError):
        parse_references(data)


def test_pcrs_are_accepted_together() -> None:
    """The kernel of one release with the sections of another is no release."""
    claims = claims_of()
    policy = Policy(azure=VtpmPolicy(snp=SnpPolicy(any_measurement=True)))
    accepted = taken(merge(policy, REFERENCES)).azure
    assert accepted is not None
    assert accepted.measurements == (MEASURED,)
    assert accepted.check(claims, datetime.now(UTC)) == []
    refused = taken(merge(policy, replace(REFERENCES, releases=(replace(RELEASE, vtpm=(OTHER,)),)))).azure
    assert refused is not None
    (violation,) = refused.check(claims, datetime.now(UTC))
    assert violation.check is Check.VTPM_PCR
    assert violation.expected == f"pcr4={PCRS[4].hex()} pcr11={'11' * 32}"


def test_a_host_may_repeat_the_configurations_digest() -> None:
    """In HOST_DATA or MRCONFIGID, where `image launch` puts it; who sets nothing is accepted as before, and nothing else is."""
    digest = b"\x0a" * 32
    references = replace(REFERENCES, releases=(replace(RELEASE, config_files=frozenset({digest})),))
    policy = taken(merge(Policy(tdx=TdxPolicy(), snp=SnpPolicy()), references))
    assert policy.snp is not None
    assert policy.tdx is not None
    assert policy.snp.host_data == {bytes(32), digest}
    assert policy.tdx.mr_config_id == {bytes(48), digest + bytes(16)}
    own = taken(merge(Policy(snp=SnpPolicy(host_data=frozenset({b"\x0b" * 32}))), references))
    assert own.snp is not None
    assert own.snp.host_data == {b"\x0b" * 32, digest}
    bare = taken(merge(Policy(snp=SnpPolicy()), REFERENCES))
    assert bare.snp is not None
    assert bare.snp.host_data == frozenset()


def test_what_names_no_pcr_matches_none() -> None:
    """An empty measurement is not one that everything has; a PCR that the quote lacks is not there."""
    assert not VtpmMeasurement().matches(dict(enumerate(PCRS)))
    assert str(VtpmMeasurement()) == "no PCR"
    assert MEASURED.matches(dict(enumerate(PCRS)))
    assert not MEASURED.matches({4: PCRS[4]})


def test_a_vtpms_release_is_revoked() -> None:
    """By its PCRs, though the CPU itself measured nothing but the paravisor."""
    claims = claims_of()
    for revoked, hit in ((MEASURED, True), (OTHER, False)):
        policy = ReleasePolicy(revoked=(Revoked(id="1.3", reason="CVE-2026-0001", vtpm=(revoked,)),))
        found = policy.check(claims.hardware, datetime.now(UTC), claims)
        assert [v.check for v in found] == [Check.POLICY_REVOKED] * hit


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


@pytest.mark.parametrize(
    "bad",
    [
        replace(REFERENCES, expires=10**12),
        replace(REFERENCES, issued=-1),
        replace(REFERENCES, epoch=-1),
        replace(REFERENCES, epoch=2**53),
        replace(REFERENCES, releases=(replace(RELEASE, until=10**20),)),
        replace(REFERENCES, releases=(RELEASE, replace(RELEASE, until=1))),
        replace(REFERENCES, revoked=(Revoked(id=RELEASE.id, reason="r"),)),
    ],
    ids=[
        "no year",
        "before 1970",
        "before the first edition",
        "no number of JSON's",
        "a release's end",
        "one id twice",
        "revoked and not",
    ],
)
def test_no_references(bad: References) -> None:
    """Times that no calendar has, and two entries of one id, are refused when the file is read."""
    with pytest.raises(MalformedError) as error:
        parse_references(dump_references(bad))
    assert error.value.check is Check.REFERENCES_FORMAT


def test_what_no_statement_can_hold() -> None:
    """Numbers and texts that have no canonical form are refused by whoever would sign them."""
    build = Build(id=bytes(32), source_date_epoch=2**60)
    for bad in (
        replace(REFERENCES, name="\ud800"),
        replace(REFERENCES, releases=(replace(RELEASE, build=build),)),
    ):
        with pytest.raises(MalformedError):
            dump_statement(bad)


def test_unknown_members_are_refused() -> None:
    """A misspelt member is not passed over."""
    text = dump_references(REFERENCES).replace(b'"left_out"', b'"leftout"')
    with pytest.raises(MalformedError) as error:
        parse_references(text)
    assert error.value.check is Check.REFERENCES_FORMAT


def azure_evidence(nonce: bytes) -> Evidence:
    """What a gateway in a simulated Azure VM hands out."""
    statement = PretendEnclave().statement
    signed = sha256(report_data(nonce, statement)).digest()
    return Evidence(statement=statement, cpu=VM.evidence(signed), collateral=VM.collateral(NOW))


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, None),
        ({"vtpm": (OTHER,)}, Check.VTPM_PCR),
        ({"until": LATER - 600}, Check.POLICY_RETIRED),
        ({"machines": Machines()}, Check.POLICY_MACHINE),
    ],
    ids=["accepted", "other PCRs", "retired", "other machines"],
)
def test_an_azure_vm_under_references(changes: dict[str, Any], refused: Check | None) -> None:
    """The whole decision about a vTPM's evidence: PCRs, end and machines come from the references alone."""
    release = replace(Release(id="1", vtpm=(MEASURED,)), **changes)
    bare = replace(
        POLICY, roots=VM.roots, azure=VtpmPolicy(snp=SnpPolicy(any_measurement=True, any_host_data=True))
    )
    references = replace(REFERENCES, releases=(release,))
    nonce = bytes(32)

    def decide(references: References) -> None:
        verify(azure_evidence(nonce), merge(bare, references), nonce=nonce, now=NOW)

    if refused is None:
        decide(references)
        gone = Revoked(id="0", reason="CVE-2026-0001", vtpm=(MEASURED,))
        references, refused = replace(references, revoked=(gone,)), Check.POLICY_REVOKED
    with pytest.raises(PolicyError) as error:
        decide(references)
    assert {v.check for v in error.value.violations} == {refused}
