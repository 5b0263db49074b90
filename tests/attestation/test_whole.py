"""One release is one thing: nothing is accepted that is put together from several, or kept from one that has ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest

from attestation.binding import parse_statement, report_data
from attestation.checks import Check
from attestation.collateral import Collateral
from attestation.errors import PolicyError
from attestation.evidence import Evidence, SnpEvidence, TdxEvidence
from attestation.policy import Policy, StatementPolicy, parse_policy
from attestation.references import References, merge
from attestation.release import Machines, Release, Revoked
from attestation.simulator.snp import MEASUREMENT, SimulatedSnp
from attestation.simulator.tdx import DEFAULT_TD
from attestation.simulator.vtpm import PCRS, SimulatedVtpm
from attestation.snp.policy import SnpPolicy
from attestation.tdx.policy import TdxMeasurement, TdxPolicy
from attestation.verdict import Verdict
from attestation.verify import verify
from attestation.vtpm import VtpmMeasurement, VtpmPolicy
from client_sdk.lock import lock
from client_sdk.policy_toml import dump_policy
from tests.client_sdk.pretend import NOW, POLICY, SIMULATOR, PretendEnclave

NONCE = bytes(32)
LATER = int(NOW.timestamp()) + 600
RAW = PretendEnclave().statement
STATEMENT = parse_statement(RAW)
MODEL, CONFIG, FILE = STATEMENT.model.digest, STATEMENT.config, b"\x0a" * 32
LAUNCHED = replace(DEFAULT_TD, mr_config_id=FILE.ljust(48, b"\0"))
BARE = replace(POLICY, statement=StatementPolicy(), tdx=TdxPolicy())
THIS = Release(
    id="1.4.0",
    tdx=(TdxMeasurement(mrtd=DEFAULT_TD.mrtd),),
    models=frozenset({MODEL}),
    configs=frozenset({CONFIG}),
    config_files=frozenset({FILE}),
)
OTHER = Release(
    id="1.4.1",
    tdx=(TdxMeasurement(mrtd=b"\x01" * 48),),
    models=frozenset({b"\x02" * 32}),
    configs=frozenset({b"\x03" * 32}),
    config_files=frozenset({b"\x04" * 32}),
)
PARTS = ("tdx", "models", "configs", "config_files")
NAMES = {
    "tdx": Check.TDX_MEASUREMENT,
    "models": Check.POLICY_MODEL,
    "configs": Check.POLICY_CONFIG,
    "config_files": Check.TDX_MR_CONFIG_ID,
}


def under(*releases: Release, own: Policy = BARE, revoked: tuple[Revoked, ...] = ()) -> Policy:
    issued = int(NOW.timestamp()) - 60
    references = References(
        name="acme", epoch=1, issued=issued, expires=issued + 86400, releases=releases, revoked=revoked
    )
    return merge(own, references)


def decide(policy: Policy, launched: Any = LAUNCHED) -> Verdict:
    """The whole decision about a TD in which the host has repeated the configuration's digest."""
    quote = SIMULATOR.quote(report_data(NONCE, RAW), td=launched)
    evidence = Evidence(
        statement=RAW, cpu=TdxEvidence(quote), collateral=Collateral(intel=SIMULATOR.collateral(NOW))
    )
    return verify(evidence, policy, nonce=NONCE, now=NOW)


def refusals(policy: Policy, **more: Any) -> dict[Check, str]:
    with pytest.raises(PolicyError) as error:
        decide(policy, **more)
    return {v.check: f"{v.expected} | {v.found}" for v in error.value.violations}


def with_part(release: Release, part: str, other: Release) -> Release:
    changed: dict[str, Any] = {part: getattr(other, part)}
    return replace(release, **changed)


def test_a_whole_release_is_accepted() -> None:
    """Alone or among others, launched with the configuration's digest or with zeros."""
    for releases in ((THIS,), (OTHER, THIS)):
        for launched in (LAUNCHED, DEFAULT_TD):
            decide(under(*releases), launched)


@pytest.mark.parametrize("part", PARTS)
def test_no_part_is_taken_from_another_release_in_force(part: str) -> None:
    """Two releases in force have everything between them, and neither has it all: the nearer one is named, and what differs."""
    mixed = with_part(THIS, part, OTHER)
    rest = with_part(OTHER, part, THIS)
    found = refusals(under(rest, mixed))
    assert set(found) == {Check.POLICY_RELEASE}
    text = found[Check.POLICY_RELEASE]
    assert "the nearest, '1.4.0', has " + NAMES[part] in text
    assert text.endswith("(of '1.4.1')")


@pytest.mark.parametrize("part", PARTS)
def test_no_part_is_kept_from_a_release_that_has_ended(part: str) -> None:
    """What it measured, served or was configured with is refused with what is in force."""
    ended = replace(OTHER, until=LATER - 600)
    found = refusals(under(with_part(ended, part, THIS), with_part(THIS, part, OTHER)))
    assert Check.POLICY_RELEASE in found
    assert "'1.4.0'" in found[Check.POLICY_RELEASE]


@pytest.mark.parametrize("part", PARTS)
def test_no_part_is_kept_from_a_release_that_was_revoked(part: str) -> None:
    """It is not in the list any more, so what it alone had is nobody's."""
    revoked = Revoked(id="1.3.0", reason="CVE-2026-0001", tdx=OTHER.tdx)
    assert set(refusals(under(with_part(THIS, part, OTHER), revoked=(revoked,)))) == {NAMES[part]}


def test_an_ended_release_is_refused_by_its_end() -> None:
    """All of it is one release, which has ended: that is what is said, and once."""
    ended = replace(THIS, until=LATER - 600)
    for releases in ((ended,), (OTHER, ended), (with_part(THIS, "models", OTHER), ended)):
        own = under(*releases)
        with pytest.raises(PolicyError) as error:
            decide(own)
        checks = [v.check for v in error.value.violations]
        assert checks == [Check.POLICY_RETIRED], error.value


def test_a_release_for_other_machines_lends_nothing() -> None:
    """What a release has on its machines alone is not had elsewhere."""
    elsewhere = replace(THIS, id="there", machines=Machines())
    assert set(refusals(under(elsewhere))) == {Check.POLICY_MACHINE}
    assert set(refusals(under(elsewhere, with_part(THIS, "models", OTHER)))) == {Check.POLICY_MACHINE}


def test_what_nobody_accepts_is_said_as_before() -> None:
    """An unknown value has its own check, and what else does not go together is told beside it."""
    mixed = replace(with_part(THIS, "models", OTHER), config_files=frozenset())
    found = refusals(under(mixed, with_part(OTHER, "models", THIS)))
    assert set(found) == {Check.TDX_MR_CONFIG_ID, Check.POLICY_RELEASE}


@pytest.mark.parametrize("part", ["models", "configs", "tdx"])
def test_what_the_policy_names_itself_goes_with_any_release(part: str) -> None:
    """Its author said so: by value or by `any_…`. The rest is still of one release."""
    lists = {"models": "model", "configs": "config"}
    ways: list[Policy] = []
    if part == "tdx":
        ways = [replace(BARE, tdx=POLICY.tdx), replace(BARE, tdx=TdxPolicy(any_measurement=True))]
    else:
        name, value = lists[part], getattr(THIS, part)
        for fields in ({f"{name}_digests": value}, {f"any_{name}": True}):
            ways.append(replace(BARE, statement=replace(BARE.statement, **fields)))
    release = with_part(THIS, part, OTHER)
    for own in ways:
        decide(under(release, own=own))
        another = "configs" if part == "models" else "models"
        halves = (with_part(release, another, OTHER), with_part(OTHER, another, THIS))
        assert Check.POLICY_RELEASE in refusals(under(*halves, own=own))


def test_a_policy_that_names_it_all_needs_no_release() -> None:
    """References beside it take nothing away, but the end of what it measures."""
    own = replace(
        POLICY, tdx=replace(POLICY.tdx or TdxPolicy(), mr_config_id=frozenset({LAUNCHED.mr_config_id}))
    )
    decide(under(OTHER, own=own))
    ended = replace(OTHER, tdx=THIS.tdx, until=LATER - 600)
    assert set(refusals(under(ended, own=own))) == {Check.POLICY_RETIRED}


def test_a_verdict_ends_with_the_release_that_it_is_of() -> None:
    """Not with another that measures the same for longer, and a model's release counts though the policy names the measurement."""
    for release, own in (
        (THIS, BARE),
        (with_part(THIS, "tdx", OTHER), replace(BARE, tdx=POLICY.tdx)),
    ):
        bound = replace(release, until=LATER)
        longer = replace(OTHER, tdx=THIS.tdx, until=LATER + 300)
        found = decide(under(bound, longer, own=own))
        assert found.valid_until == datetime.fromtimestamp(LATER, UTC)


def test_a_lock_keeps_the_release_that_it_is_of() -> None:
    """It ends when that one does, though another that measures the same goes on; without any limit it has none."""
    for until, ids in ((LATER, {"1.4.0", "1.4.1"}), (None, set())):
        policy = under(replace(THIS, until=until), replace(OTHER, tdx=THIS.tdx, until=until and until + 300))
        locked = lock(decide(policy), policy, name="lock", expires=None)
        assert {one.id for one in locked.release.limited} == ids
        assert locked.release.accepted == ()
        assert parse_policy(dump_policy(locked)) == locked
        assert decide(locked).valid_until == decide(policy).valid_until


def test_releases_stand_in_a_policy_file() -> None:
    """Whoever writes policies by hand can name whole releases too; they are written and read as any table."""
    policy = under(THIS, replace(OTHER, until=LATER, machines=Machines(ppids=frozenset({bytes(16)}))))
    assert parse_policy(dump_policy(policy)) == policy


def test_an_snp_guest_is_of_one_release() -> None:
    """HOST_DATA goes with the measurement of its own release, or is zero."""
    machine = SimulatedSnp()
    mine = replace(THIS, tdx=(), snp=frozenset({MEASUREMENT}))
    other = replace(OTHER, tdx=(), snp=frozenset({b"\x01" * 48}))
    own = replace(BARE, roots=replace(POLICY.roots, amd=(machine.root,)), snp=SnpPolicy())

    def refused(host_data: bytes, *releases: Release) -> list[Check]:
        report = machine.report(report_data(NONCE, RAW), host_data=host_data)
        collateral = Collateral(amd=machine.collateral(NOW))
        evidence = Evidence(statement=RAW, cpu=SnpEvidence(report), collateral=collateral)
        try:
            verify(evidence, under(*releases, own=own), nonce=NONCE, now=NOW)
        except PolicyError as error:
            return [v.check for v in error.violations]
        return []

    (theirs,) = other.config_files
    assert refused(FILE, mine, other) == []
    assert refused(bytes(32), mine, other) == []
    assert refused(theirs, mine, other) == [Check.POLICY_RELEASE]
    assert refused(theirs, mine) == [Check.SNP_HOST_DATA]


def test_an_azure_vm_is_of_one_release() -> None:
    """PCRs that a policy names do not stand in for those that a release names."""
    vm = SimulatedVtpm()
    mine = replace(THIS, tdx=(), vtpm=(VtpmMeasurement(pcr4=PCRS[4]),), config_files=frozenset())
    other = replace(OTHER, tdx=(), vtpm=(VtpmMeasurement(pcr4=b"\x01" * 32),))
    table = VtpmPolicy(snp=SnpPolicy(any_measurement=True, any_host_data=True), any_pcrs=True)
    own = replace(BARE, roots=vm.roots, azure=table)

    def refused(*releases: Release, own: Policy = own) -> list[Check]:
        evidence = Evidence(
            statement=RAW,
            cpu=vm.evidence(sha256(report_data(NONCE, RAW)).digest()),
            collateral=vm.collateral(NOW),
        )
        try:
            verify(evidence, under(*releases, own=own), nonce=NONCE, now=NOW)
        except PolicyError as error:
            return [v.check for v in error.violations]
        return []

    assert refused(mine, other) == []
    assert refused(with_part(mine, "models", OTHER), with_part(other, "models", THIS)) == [
        Check.POLICY_RELEASE
    ]
    anything = replace(own, statement=StatementPolicy(any_model=True, any_config=True))
    assert refused(other, own=anything) == [Check.VTPM_PCR]
    bound = replace(mine, until=LATER - 600)
    assert refused(bound, replace(other, vtpm=()), own=anything) == [Check.POLICY_RETIRED]
