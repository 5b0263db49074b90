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

from attestation.binding import report_data
from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError
from attestation.evidence import Evidence
from attestation.policy import Policy
from attestation.references import References, dump_references, dump_statement, merge, parse_references
from attestation.release import Build, Machines, Release, Revoked
from attestation.release_policy import ReleasePolicy
from attestation.simulator.vtpm import PCRS
from attestation.snp import SnpPolicy
from attestation.tdx.policy import TdxPolicy
from attestation.verify import verify
from attestation.vtpm import VtpmMeasurement, VtpmPolicy
from tests.attestation.releases import MEASURED, OTHER, REFERENCES, RELEASE, VM, claims_of, taken
from tests.attestation.test_release_limits import LATER
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave


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
