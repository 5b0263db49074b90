"""What a policy accepts of an authentic TD: strict by default, and every loosening by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx, TdxDefect
from attestation.tdx import TcbStatus, TdxClaims, TdxMeasurement, TdxPolicy, verify
from attestation.tdx.quote import ServiceTdHistory

NOW = datetime(2026, 6, 1, tzinfo=UTC)
MEASURED = TdxPolicy(measurements=(TdxMeasurement(mrtd=DEFAULT_TD.mrtd),))
OTHER_48, OTHER_16 = b"\x01" * 48, b"\x01" * 16


@pytest.fixture(scope="module")
def claims(sim: SimulatedTdx) -> TdxClaims:
    """Claims of a good TD."""
    return verify(sim.quote(bytes(64)), sim.collateral(NOW), (sim.root,), NOW)


def with_defect(sim: SimulatedTdx, defect: TdxDefect) -> TdxClaims:
    """Claims of a TD or platform with a defect that is no matter of authenticity."""
    return verify(sim.quote(bytes(64), defect=defect), sim.collateral(NOW, defect=defect), (sim.root,), NOW)


def refusals(policy: TdxPolicy, claims: TdxClaims, now: datetime = NOW) -> list[Check]:
    """The checks that `policy` finds violated."""
    return [violation.check for violation in policy.check(claims, now)]


def test_a_new_policy_accepts_no_measurement(claims: TdxClaims) -> None:
    """An empty list of measurements is not a wildcard; that has a name."""
    (violation,) = TdxPolicy().check(claims, NOW)
    assert violation.check is Check.TDX_MEASUREMENT
    assert "lists no measurement" in violation.expected
    assert DEFAULT_TD.mrtd.hex() in violation.found
    assert refusals(TdxPolicy(any_measurement=True), claims) == []


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"])
def test_every_register_counts(claims: TdxClaims, register: str) -> None:
    """A measurement accepts a TD only if each register it names is equal."""
    right = TdxMeasurement(
        mrtd=DEFAULT_TD.mrtd, rtmr0=DEFAULT_TD.rtmr0, rtmr1=DEFAULT_TD.rtmr1, rtmr2=DEFAULT_TD.rtmr2
    )
    wrong = replace(right, **{register: OTHER_48})
    assert refusals(TdxPolicy(measurements=(right,)), claims) == []
    (violation,) = TdxPolicy(measurements=(wrong,)).check(claims, NOW)
    assert violation.check is Check.TDX_MEASUREMENT
    assert violation.expected == f"{register}={OTHER_48.hex()}", "and nothing of those that are equal"
    assert violation.found == f"{register}={getattr(DEFAULT_TD, register).hex()}"
    (violation,) = TdxPolicy(measurements=(wrong, wrong)).check(claims, NOW)
    assert " or " in violation.expected
    assert refusals(TdxPolicy(measurements=(wrong, right)), claims) == []


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"fmspc": frozenset({b"\x01" * 6})}, Check.TDX_PLATFORM),
        ({"ppid": frozenset({OTHER_16})}, Check.TDX_PLATFORM),
        ({"platform_instance_id": frozenset({OTHER_16})}, Check.TDX_PLATFORM),
        ({"fmspc": frozenset()}, Check.TDX_PLATFORM),
        ({"mr_seam": frozenset({OTHER_48})}, Check.TDX_MR_SEAM),
        ({"mr_signer_seam": frozenset({OTHER_48})}, Check.TDX_MR_SIGNER_SEAM),
        ({"min_tee_tcb_svn": b"\x08" + bytes(15)}, Check.TDX_TEE_TCB_SVN),
        ({"min_tcb_evaluation_data_number": 21}, Check.TDX_TCB_EVALUATION),
        ({"max_collateral_age_days": 0}, Check.TDX_COLLATERAL_AGE),
        ({"accept_tcb_status": frozenset()}, Check.TDX_TCB_STATUS),
        ({"mr_config_id": frozenset({OTHER_48})}, Check.TDX_MR_CONFIG_ID),
        ({"mr_owner": frozenset({OTHER_48})}, Check.TDX_MR_OWNER),
        ({"mr_owner_config": frozenset({OTHER_48})}, Check.TDX_MR_OWNER_CONFIG),
    ],
)
def test_a_demand_that_is_not_met_is_reported(
    claims: TdxClaims, change: dict[str, object], check: Check
) -> None:
    """Allow-lists and floors refuse what is not on or above them, under their own name."""
    assert refusals(replace(MEASURED, **change), claims) == [check]  # type: ignore[arg-type]  # field by field


def test_demands_that_are_met_are_silent(claims: TdxClaims) -> None:
    """Naming the platform as it is refuses nothing."""
    policy = replace(
        MEASURED,
        fmspc=frozenset({claims.platform.fmspc}),
        ppid=frozenset({claims.platform.ppid}),
        platform_instance_id=frozenset({claims.platform.platform_instance_id or b""}),
        mr_seam=frozenset({claims.td.mr_seam}),
        min_tee_tcb_svn=claims.td.tee_tcb_svn,
        min_tcb_evaluation_data_number=20,
        max_collateral_age_days=1,
    )
    assert refusals(policy, claims) == []


def test_a_missing_platform_instance_id_is_not_on_any_list(claims: TdxClaims) -> None:
    """Where a policy names instances, a platform without one is refused."""
    without = replace(claims, platform=replace(claims.platform, platform_instance_id=None))
    policy = replace(MEASURED, platform_instance_id=frozenset({OTHER_16}))
    (violation,) = policy.check(without, NOW)
    assert violation.check is Check.TDX_PLATFORM
    assert violation.found.endswith("none")


@pytest.mark.parametrize(
    ("defect", "loosening"),
    [
        (TdxDefect.DEBUG, {"allow_debug": True}),
        (TdxDefect.SEPT_VE, {"allow_sept_ve": True}),
        (TdxDefect.MIGRATABLE, {"allow_migratable": True}),
        (TdxDefect.PERFMON, {"allow_perfmon": True}),
        (TdxDefect.PKS, {"allow_pks": True}),
        (TdxDefect.RESERVED_ATTRIBUTE, {"allow_attribute_bits": frozenset({9})}),
        (TdxDefect.UNKNOWN_XFAM, {"allow_xfam_bits": frozenset({40})}),
        (TdxDefect.SERVICE_TD, {"allow_service_td": True}),
        (TdxDefect.TRAILING_ZEROS, {"allow_padding": True}),
        (TdxDefect.MR_CONFIG_ID, {"any_mr_config_id": True}),
        (TdxDefect.MR_OWNER, {"any_mr_owner": True}),
        (TdxDefect.MR_OWNER_CONFIG, {"any_mr_owner_config": True}),
        (TdxDefect.TCB_OUT_OF_DATE, {"accept_tcb_status": frozenset({TcbStatus.OUT_OF_DATE})}),
        (TdxDefect.SW_HARDENING_NEEDED, {"accept_tcb_status": frozenset({TcbStatus.SW_HARDENING_NEEDED})}),
        (TdxDefect.ADVISORY, {"accept_advisories": frozenset({"INTEL-SA-09999"})}),
        (TdxDefect.ADVISORY, {"accept_any_advisory": True}),
    ],
)
def test_each_loosening_accepts_one_thing(
    sim: SimulatedTdx, defect: TdxDefect, loosening: dict[str, object]
) -> None:
    """A named field accepts what the default refuses, and nothing more is needed."""
    found = with_defect(sim, defect)
    assert len(refusals(MEASURED, found)) == 1
    assert refusals(replace(MEASURED, **loosening), found) == []  # type: ignore[arg-type]  # field by field


@pytest.mark.parametrize("when", ["init_service_td_hash", "current_service_td_hash"])
def test_a_service_td_in_the_history(claims: TdxClaims, when: str) -> None:
    """TD 1.5ex tells which one there was at the start and is now: either is refused, though none is bound."""
    parts = {"td_id": 32, "dev_info": 48, "init_service_td_hash": 48, "init_service_td_attributes": 8}
    parts |= {"init_cpu_svn": 16, "init_tee_tcb_svn": 16, "init_tee_fmspc": 12}
    parts |= {"current_service_td_hash": 48, "current_service_td_attributes": 8}
    empty = ServiceTdHistory(vmid=0, **{name: bytes(size) for name, size in parts.items()})
    bound = replace(empty, **{when: OTHER_48})  # type: ignore[arg-type]  # one of the digests
    for history, refused in ((empty, []), (bound, [Check.TDX_SERVICE_TD])):
        found = replace(claims, td=replace(claims.td, mr_service_td=bytes(48), history=history))
        assert refusals(MEASURED, found) == refused
        assert refusals(replace(MEASURED, allow_service_td=True), found) == []


def test_x87_and_sse_must_be_on(claims: TdxClaims) -> None:
    """XFAM bits 0 and 1 are fixed to one; a report without them is no TDX module's."""
    assert refusals(MEASURED, replace(claims, td=replace(claims.td, xfam=0x602E4))) == [Check.TDX_XFAM]


def test_all_violations_are_reported_at_once(sim: SimulatedTdx) -> None:
    """A policy does not stop at the first reason."""
    td = replace(DEFAULT_TD15, td_attributes=1, xfam=0, mr_owner=OTHER_48, mr_service_td=OTHER_48)
    found = verify(sim.quote(bytes(64), td=td, version=5) + bytes(3), sim.collateral(NOW), (sim.root,), NOW)
    assert set(refusals(TdxPolicy(), found)) == {
        Check.TDX_MEASUREMENT,
        Check.TDX_MR_OWNER,
        Check.TDX_DEBUG,
        Check.TDX_SEPT_VE,
        Check.TDX_XFAM,
        Check.TDX_SERVICE_TD,
        Check.TDX_PADDING,
    }


def test_grace_accepts_an_out_of_date_level_for_some_days(sim: SimulatedTdx) -> None:
    """Grace counts from the level's own date and ends."""
    found = with_defect(sim, TdxDefect.TCB_OUT_OF_DATE)
    policy = replace(MEASURED, grace_days=10)
    assert refusals(policy, found, found.tcb.date + timedelta(days=10)) == []
    assert refusals(policy, found, found.tcb.date + timedelta(days=10, seconds=1)) == [Check.TDX_TCB_STATUS]


def test_grace_covers_the_age_and_nothing_else(claims: TdxClaims) -> None:
    """A level that also needs configuration is accepted only where that is accepted too."""
    both = replace(claims, tcb=replace(claims.tcb, status=TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED))
    policy = replace(MEASURED, grace_days=9999)
    assert refusals(policy, both) == [Check.TDX_TCB_STATUS]
    accepted = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.CONFIGURATION_NEEDED})
    assert refusals(replace(policy, accept_tcb_status=accepted), both) == []


def test_a_policy_comes_from_a_toml_table(claims: TdxClaims) -> None:
    """Every field can be written in TOML: hex, lists, numbers and status names."""
    table = {
        "measurements": [{"mrtd": DEFAULT_TD.mrtd.hex(), "rtmr1": DEFAULT_TD.rtmr1.hex()}],
        "accept_tcb_status": ["UpToDate", "SWHardeningNeeded"],
        "fmspc": ["00000053494d"],
        "max_collateral_age_days": 30,
        "allow_xfam_bits": [40],
        "allow_perfmon": True,
    }
    policy = load_table(TdxPolicy, table, "tdx")
    assert policy.accept_tcb_status == {TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED}
    assert refusals(policy, claims) == []


@pytest.mark.parametrize(
    "table",
    [
        {"allow_everything": True},
        {"allow_debug": "yes"},
        {"accept_tcb_status": ["Fine"]},
        {"measurements": [{"mrtd": "00"}]},
        {"measurements": [{"rtmr0": "00" * 48}]},
        {"fmspc": ["0000"]},
    ],
)
def test_a_table_that_says_something_else_is_refused(table: dict[str, object]) -> None:
    """Unknown keys, wrong types and wrong lengths are errors, not defaults."""
    with pytest.raises(MalformedError) as caught:
        load_table(TdxPolicy, table, "tdx")
    assert caught.value.check is Check.POLICY_FORMAT
