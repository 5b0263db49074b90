"""Every check has a defect that fails exactly it, and the independent verifier is never the stricter one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx, TdxDefect
from attestation.tdx import TdReport, TdxMeasurement, TdxPolicy, verify
from tests.attestation.tdx.second_opinion import ask

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = TdxPolicy(measurements=(TdxMeasurement(mrtd=DEFAULT_TD.mrtd, rtmr1=DEFAULT_TD.rtmr1),))
D = TdxDefect

# the check that a defect fails, and whether it is authenticity (raised) or acceptance (a violation)
REFUSED_BY: dict[TdxDefect, Check] = {
    D.TRUNCATED: Check.TDX_FORMAT,
    D.TRAILING_BYTES: Check.TDX_FORMAT,
    D.SGX_QUOTE: Check.TDX_KIND,
    D.UNKNOWN_VERSION: Check.TDX_KIND,
    D.UNKNOWN_KEY_TYPE: Check.TDX_KIND,
    D.OTHER_ROOT: Check.TDX_ROOT,
    D.ROOT_CHANGED: Check.TDX_PCK_CHAIN,
    D.ROOT_OF_OTHER_ROLE: Check.TDX_PCK_ROLE,
    D.ROOT_EXPIRED: Check.TDX_PCK_VALIDITY,
    D.CA_OF_OTHER_ROOT: Check.TDX_PCK_CHAIN,
    D.CA_OF_OTHER_ROLE: Check.TDX_PCK_ROLE,
    D.CA_EXPIRED: Check.TDX_PCK_VALIDITY,
    D.PCK_OF_OTHER_CA: Check.TDX_PCK_CHAIN,
    D.CA_IS_NO_CA: Check.TDX_PCK_CHAIN,
    D.CHAIN_OF_FOUR: Check.TDX_PCK_CHAIN,
    D.PCK_OF_OTHER_ROLE: Check.TDX_PCK_ROLE,
    D.PCK_EXPIRED: Check.TDX_PCK_VALIDITY,
    D.PCK_NOT_YET_VALID: Check.TDX_PCK_VALIDITY,
    D.PCK_UNKNOWN_CRITICAL: Check.TDX_PCK_CHAIN,
    D.PCK_WITHOUT_EXTENSION: Check.TDX_PCK_EXTENSION,
    D.PCK_EXTENSION_SHORT: Check.TDX_PCK_EXTENSION,
    D.ROOT_CRL_OF_OTHER_KEY: Check.TDX_ROOT_CRL,
    D.ROOT_CRL_EXPIRED: Check.TDX_ROOT_CRL_DATES,
    D.ROOT_CRL_NOT_YET_VALID: Check.TDX_ROOT_CRL_DATES,
    D.PCK_CRL_OF_OTHER_CA: Check.TDX_PCK_CRL,
    D.PCK_CRL_IS_ROOT_CRL: Check.TDX_PCK_CRL,
    D.PCK_CRL_IS_A_DELTA: Check.TDX_PCK_CRL,
    D.PCK_CRL_EXPIRED: Check.TDX_PCK_CRL_DATES,
    D.PCK_CRL_NOT_YET_VALID: Check.TDX_PCK_CRL_DATES,
    D.CA_REVOKED: Check.TDX_CA_REVOKED,
    D.PCK_REVOKED: Check.TDX_PCK_REVOKED,
    D.SIGNER_REVOKED: Check.TDX_SIGNER_REVOKED,
    D.SIGNER_IS_PCK: Check.TDX_SIGNER_CHAIN,
    D.SIGNER_IS_PLATFORM_CA: Check.TDX_SIGNER_ROLE,
    D.SIGNER_UNDER_PLATFORM_CA: Check.TDX_SIGNER_CHAIN,
    D.SIGNER_WITH_OTHER_ROOT: Check.TDX_SIGNER_CHAIN,
    D.SIGNER_EXPIRED: Check.TDX_SIGNER_VALIDITY,
    D.TCB_INFO_CHANGED: Check.TDX_TCB_INFO_SIGNATURE,
    D.TCB_INFO_OF_SGX: Check.TDX_TCB_INFO_KIND,
    D.TCB_INFO_VERSION_2: Check.TDX_TCB_INFO_KIND,
    D.TCB_INFO_TYPE_1: Check.TDX_TCB_INFO_KIND,
    D.TCB_INFO_EXPIRED: Check.TDX_TCB_INFO_DATES,
    D.TCB_INFO_NOT_YET_VALID: Check.TDX_TCB_INFO_DATES,
    D.TCB_INFO_NO_JSON: Check.TDX_COLLATERAL_FORMAT,
    D.FIFTEEN_COMPONENTS: Check.TDX_COLLATERAL_FORMAT,
    D.UNKNOWN_STATUS: Check.TDX_COLLATERAL_FORMAT,
    D.OTHER_FMSPC: Check.TDX_FMSPC,
    D.OTHER_PCE_ID: Check.TDX_PCE_ID,
    D.QE_IDENTITY_CHANGED: Check.TDX_QE_IDENTITY_SIGNATURE,
    D.QE_IDENTITY_OF_SGX: Check.TDX_QE_IDENTITY_KIND,
    D.QE_IDENTITY_VERSION_3: Check.TDX_QE_IDENTITY_KIND,
    D.QE_IDENTITY_EXPIRED: Check.TDX_QE_IDENTITY_DATES,
    D.QE_IDENTITY_NOT_YET_VALID: Check.TDX_QE_IDENTITY_DATES,
    D.OTHER_QE_VENDOR: Check.TDX_QE_VENDOR,
    D.QE_REPORT_CHANGED: Check.TDX_QE_REPORT_SIGNATURE,
    D.KEY_UNBOUND: Check.TDX_AK_BINDING,
    D.KEY_HALF_BOUND: Check.TDX_AK_BINDING,
    D.KEY_NO_POINT: Check.TDX_QUOTE_SIGNATURE,
    D.QE_DEBUG: Check.TDX_QE_DEBUG,
    D.QE_OF_OTHER_SIGNER: Check.TDX_QE_IDENTITY,
    D.QE_OF_OTHER_PRODUCT: Check.TDX_QE_IDENTITY,
    D.QE_MISCSELECT: Check.TDX_QE_IDENTITY,
    D.QE_ATTRIBUTES: Check.TDX_QE_IDENTITY,
    D.QE_TOO_OLD: Check.TDX_QE_LEVEL,
    D.TD_CHANGED: Check.TDX_QUOTE_SIGNATURE,
    D.SIGNATURE_CHANGED: Check.TDX_QUOTE_SIGNATURE,
    D.MODULE_OF_OTHER_SIGNER: Check.TDX_MODULE,
    D.MODULE_ATTRIBUTES: Check.TDX_MODULE,
    D.MODULE_UNKNOWN: Check.TDX_MODULE,
    D.MODULE_TOO_OLD: Check.TDX_MODULE_LEVEL,
    D.TCB_TOO_OLD: Check.TDX_TCB_LEVEL,
    D.TCB_REVOKED: Check.TDX_TCB_REVOKED,
    D.QE_STATUS_REVOKED: Check.TDX_TCB_REVOKED,
    D.MODULE_STATUS_REVOKED: Check.TDX_TCB_REVOKED,
}
NOT_ACCEPTED_BY: dict[TdxDefect, Check] = {
    D.TRAILING_ZEROS: Check.TDX_PADDING,
    D.TCB_OUT_OF_DATE: Check.TDX_TCB_STATUS,
    D.QE_OUT_OF_DATE: Check.TDX_TCB_STATUS,
    D.MODULE_OUT_OF_DATE: Check.TDX_TCB_STATUS,
    D.CONFIGURATION_NEEDED: Check.TDX_TCB_STATUS,
    D.SW_HARDENING_NEEDED: Check.TDX_TCB_STATUS,
    D.ADVISORY: Check.TDX_ADVISORIES,
    D.DEBUG: Check.TDX_DEBUG,
    D.SEPT_VE: Check.TDX_SEPT_VE,
    D.MIGRATABLE: Check.TDX_MIGRATABLE,
    D.PERFMON: Check.TDX_PERFMON,
    D.PKS: Check.TDX_PKS,
    D.RESERVED_ATTRIBUTE: Check.TDX_RESERVED_ATTRIBUTES,
    D.UNKNOWN_XFAM: Check.TDX_XFAM,
    D.SERVICE_TD: Check.TDX_SERVICE_TD,
    D.MR_CONFIG_ID: Check.TDX_MR_CONFIG_ID,
    D.MR_OWNER: Check.TDX_MR_OWNER,
    D.MR_OWNER_CONFIG: Check.TDX_MR_OWNER_CONFIG,
    D.MODULE_MAKER: Check.TDX_MR_SIGNER_SEAM,
}
# Where we refuse what the second opinion accepts, and why. Statuses below UpToDate and advisories are not listed:
# it reports those, as our claims do, and leaves the judgement to its caller.
STRICTER: dict[TdxDefect, str] = {
    D.TRAILING_BYTES: "what nobody signed has no place after a quote",
    D.TRAILING_ZEROS: "the same; a policy may allow the zeros that device files end in",
    D.ROOT_CHANGED: "the root in the chain is judged as a certificate too, not only by its key",
    D.ROOT_EXPIRED: "the same (Intel QVL checks the root's dates)",
    D.PCK_OF_OTHER_ROLE: "roles are told by name as well as by place (Intel QVL, certificate subject)",
    D.PCK_EXTENSION_SHORT: "sixteen components are what levels are compared with; fewer could hide a low one",
    D.ROOT_CRL_NOT_YET_VALID: "a list has two dates (Intel QVL checks thisUpdate too)",
    D.PCK_CRL_NOT_YET_VALID: "the same",
    D.SIGNER_IS_PCK: "a platform must not speak for Intel (Intel QVL, TCB signing chain)",
    D.SIGNER_UNDER_PLATFORM_CA: "only the root issues the TCB Signing certificate (Intel QVL, chain of two)",
    D.SIGNER_WITH_OTHER_ROOT: "what is delivered as the root must be the root",
    D.TCB_INFO_TYPE_1: "components of another type are compared in another way",
    D.QE_IDENTITY_VERSION_3: "a version that nobody has described yet",
    D.OTHER_PCE_ID: "levels of another provisioning enclave say nothing (Intel QVL, STATUS_TCB_INFO_MISMATCH)",
    D.KEY_HALF_BOUND: "the second half of the report data is zero in every genuine report",
    D.ADVISORY: "advisories are accepted by name",
    D.PERFMON: "performance counters of a TD are a side channel; a policy may allow them",
    D.PKS: "a policy may allow it",
    D.UNKNOWN_XFAM: "features the TDX module does not know",
    D.MR_CONFIG_ID: "a value a policy does not name",
    D.MR_OWNER: "a value a policy does not name",
    D.MR_OWNER_CONFIG: "a value a policy does not name",
    D.MODULE_MAKER: "Intel signs the TDX module, unless a policy names another signer",
}


def judge(sim: SimulatedTdx, defect: TdxDefect | None, policy: TdxPolicy = POLICY) -> list[Check]:
    """The checks that refuse evidence with `defect`: one that raised, or all violations."""
    quote, collateral = sim.quote(bytes(64), defect=defect), sim.collateral(NOW, defect=defect)
    try:
        claims = verify(quote, collateral, (sim.root,), NOW)
    except AttestationError as exc:
        return [exc.check]
    return [v.check for v in policy.check(claims, NOW)]


@pytest.mark.parametrize(
    ("td", "version"), [(DEFAULT_TD, 4), (DEFAULT_TD, 5), (DEFAULT_TD15, 5)], ids=["v4", "v5-td10", "v5-td15"]
)
def test_good_evidence_is_accepted_by_both(sim: SimulatedTdx, td: TdReport, version: int) -> None:
    """Without a defect, every quote version is accepted by us and by the second opinion."""
    quote, collateral = sim.quote(bytes(range(64)), td=td, version=version), sim.collateral(NOW)
    claims = verify(quote, collateral, (sim.root,), NOW)
    assert POLICY.check(claims, NOW) == []
    assert claims.report_data == bytes(range(64))
    assert claims.root == sim.root
    assert ask(quote, collateral, NOW, sim.root_der) == ("UpToDate", ())


@pytest.mark.parametrize("defect", list(TdxDefect))
def test_each_defect_fails_exactly_its_check(sim: SimulatedTdx, defect: TdxDefect) -> None:
    """A defect is refused for its own reason and no other."""
    expected = REFUSED_BY.get(defect) or NOT_ACCEPTED_BY[defect]
    assert judge(sim, defect) == [expected]


@pytest.mark.parametrize("defect", REFUSED_BY)
def test_no_policy_makes_up_for_a_lack_of_authenticity(sim: SimulatedTdx, defect: TdxDefect) -> None:
    """What is refused as not authentic never reaches a policy."""
    quote, collateral = sim.quote(bytes(64), defect=defect), sim.collateral(NOW, defect=defect)
    with pytest.raises(AttestationError) as caught:
        verify(quote, collateral, (sim.root,), NOW)
    assert caught.value.check is REFUSED_BY[defect]


@pytest.mark.parametrize("defect", list(TdxDefect))
def test_never_laxer_than_the_second_opinion(sim: SimulatedTdx, defect: TdxDefect) -> None:
    """Where it refuses, we refuse; where we alone refuse, the table above says why."""
    quote, collateral = sim.quote(bytes(64), defect=defect), sim.collateral(NOW, defect=defect)
    status, _ = ask(quote, collateral, NOW, sim.root_der)
    assert judge(sim, defect)  # every defect is refused here, so there is nothing it could be stricter about
    assert (status == "UpToDate") == (defect in STRICTER)


def test_an_empty_list_of_roots_trusts_nobody(sim: SimulatedTdx) -> None:
    """No root, no verdict."""
    with pytest.raises(AttestationError) as caught:
        verify(sim.quote(bytes(64)), sim.collateral(NOW), (), NOW)
    assert caught.value.check is Check.TDX_ROOT


def test_another_simulated_intel_is_another_root(sim: SimulatedTdx) -> None:
    """Two simulators share names and formats, but not trust; nor may the collateral of one speak for the other."""
    other = SimulatedTdx.create()
    with pytest.raises(AttestationError) as caught:
        verify(sim.quote(bytes(64)), sim.collateral(NOW), (other.root,), NOW)
    assert caught.value.check is Check.TDX_ROOT
    with pytest.raises(AttestationError) as caught:
        verify(sim.quote(bytes(64)), other.collateral(NOW), (sim.root, other.root), NOW)
    assert caught.value.check is Check.TDX_ROOT_CRL


def test_every_tdx_check_is_failed_by_a_defect_or_a_policy() -> None:
    """The tables above and test_policy.py reach every check that begins with "tdx."."""
    by_policy = {
        Check.TDX_MEASUREMENT,
        Check.TDX_PLATFORM,
        Check.TDX_MR_SEAM,
        Check.TDX_TEE_TCB_SVN,
        Check.TDX_TCB_EVALUATION,
        Check.TDX_COLLATERAL_AGE,
    }
    reached = set(REFUSED_BY.values()) | set(NOT_ACCEPTED_BY.values()) | by_policy
    assert reached == {check for check in Check if check.startswith("tdx.")}
