"""Real evidence, and the verdict the manifest of the vectors expects of each."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation._x509 import parse_chain, spki_sha256
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError
from attestation.roots import Root
from attestation.tdx import TdxClaims, TdxPolicy, parse_quote
from attestation.tdx.chain import verify_pck_chain
from attestation.tdx.verify import (
    check_key_binding,
    verify_qe_identity,
    verify_qe_report,
    verify_quote_signature,
    verify_tcb_info,
)
from tests.attestation.tdx.second_opinion import REFUSED, ask
from tests.attestation.tdx.support import B0C06F, INTEL, at, collateral, judge, unrevoked
from tests.vectors import VECTORS, manifest, needs_vectors, read

pytestmark = needs_vectors
SYNTH_NOW = 1752000000
ANY_TD = TdxPolicy(any_measurement=True, any_mr_config_id=True, any_mr_owner=True, any_mr_owner_config=True)


def cases() -> list[dict[str, Any]]:
    """Quote × collateral × time, with the verdicts of two independent evaluators."""
    if VECTORS is None:
        return []
    found: list[dict[str, Any]] = json.loads(read("tdx/cases.json"))
    return found


def case_id(case: dict[str, Any]) -> str:
    """Quote and collateral, without folders."""
    return f"{case['quote'].split('/')[-1]}-{case['collateral'].split('/')[-1]}"


@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_cases_get_the_expected_status(case: dict[str, Any]) -> None:
    """TCB status, its parts, date and advisories are those of an evaluator in the order of Intel's library."""
    quote, now = read(case["quote"]), at(case["now"])
    verdict = judge(quote, collateral(case["collateral"]), now)
    expected = case["intel_qvl_order"]
    if case["quote"].startswith("sgx/"):
        assert isinstance(verdict, MalformedError)
        assert verdict.check is Check.TDX_KIND
    elif "error" in expected:
        assert isinstance(verdict, AttestationError)
        assert verdict.check is Check.TDX_TCB_LEVEL
    else:
        assert isinstance(verdict, TdxClaims)
        assert verdict.tcb_status == expected["status"]
        assert verdict.tcb.platform_status == expected["platform"]
        assert verdict.tcb.qe_status == expected["qe"]
        assert verdict.tcb.module_status == expected["module"]
        assert list(verdict.advisories) == sorted(expected["advisories"])
        # ours is the oldest level of all, the quoting enclave's included
        assert f"{verdict.tcb.date:%Y-%m-%dT%H:%M:%SZ}" <= expected["tcb_date"]


# What the second opinion refuses by itself is refused by our policy, under these names.
REFUSED_BY_POLICY = {
    "SEPT_VE_DISABLE is not enabled": Check.TDX_SEPT_VE,
    "Invalid MR service TD": Check.TDX_SERVICE_TD,
}


@pytest.mark.parametrize("case", [c for c in cases() if c["quote"].startswith("tdx/")], ids=case_id)
def test_cases_are_never_judged_more_laxly(case: dict[str, Any]) -> None:
    """Against dcap-qvl run here and now, and against the verdict of it that was recorded."""
    quote, with_, now = read(case["quote"]), collateral(case["collateral"]), at(case["now"])
    status, advisories = ask(quote, with_, now)
    assert status == case["dcap_qvl_0_7_0"].get("status", REFUSED)
    verdict = judge(quote, with_, now)
    if status == REFUSED:
        reasons = {verdict.check} if isinstance(verdict, AttestationError) else set()
        if isinstance(verdict, TdxClaims):
            reasons = {violation.check for violation in ANY_TD.check(verdict, now)}
        wanted = REFUSED_BY_POLICY.get(case["dcap_qvl_0_7_0"]["error"], Check.TDX_TCB_LEVEL)
        assert wanted in reasons
    else:
        assert isinstance(verdict, TdxClaims)
        assert (verdict.tcb_status, verdict.advisories) == (status, advisories)


@pytest.mark.parametrize("entry", [v for v in manifest("tdx") if v["kind"] == "quote"], ids=lambda v: v["id"])
def test_real_quotes_are_signed_to_intels_root(entry: dict[str, Any]) -> None:
    """Chain, QE report, key binding and quote signature hold for every real TDX quote, and its fields are as listed."""
    quote = parse_quote(read(entry["files"][0]), padding=True)
    meta = entry["meta"]
    assert (quote.version, quote.td.body_type) == (meta["version"], meta["body_type"])
    assert quote.td.mrtd.hex() == meta["mr_td"]
    assert quote.td.mr_seam.hex() == meta["mr_seam"]
    assert list(quote.td.tee_tcb_svn) == meta["tee_tcb_svn"]
    assert quote.td.report_data.hex() == meta["report_data"]
    assert quote.td.td_attributes.to_bytes(8, "little").hex() == meta["td_attributes"]
    assert quote.td.xfam.to_bytes(8, "little").hex() == meta["xfam"]
    chain = unrevoked(quote.pck_chain, at(0), collateral(B0C06F).root_ca_crl)
    assert chain.platform.fmspc.hex().upper() == meta["fmspc"]
    assert chain.platform.ppid.hex() == meta["ppid"]
    assert chain.platform.pce_svn == meta["pcesvn"]
    assert list(chain.platform.sgx_components) == list(chain.platform.cpu_svn) == meta["cpusvn"]
    verify_qe_report(quote, chain)
    check_key_binding(quote)
    verify_quote_signature(quote)


@pytest.mark.parametrize("entry", [v for v in manifest("sgx") if v["kind"] == "quote"], ids=lambda v: v["id"])
def test_sgx_quotes_are_refused_by_name(entry: dict[str, Any]) -> None:
    """An enclave is not a TD, whatever it quotes."""
    with pytest.raises(MalformedError) as caught:
        parse_quote(read(entry["files"][0]))
    assert caught.value.check is Check.TDX_KIND
    assert "SGX" in caught.value.detail


@pytest.mark.parametrize(
    "entry", [v for v in manifest("tdx") if v["kind"] == "collateral"], ids=lambda v: v["id"]
)
def test_collateral_holds_exactly_as_long_as_it_says(entry: dict[str, Any]) -> None:
    """TCB info, QE identity and root CRL verify from the first to the last second of the window, and not outside it."""
    with_, (start, end) = collateral(entry["files"][0]), entry["valid_unix"]
    chain = read("tdx/quotes/go-tdx-guest-v4-3507b5.bin")
    pem = parse_quote(chain).pck_chain
    for seconds in (start, end):
        pck = verify_pck_chain(pem, with_, INTEL, at(seconds))
        verify_tcb_info(with_, pck, at(seconds))
        verify_qe_identity(with_, pck, at(seconds))
    for seconds in (start - 1, end + 1):
        with pytest.raises(AttestationError) as caught:  # noqa: PT012  # whichever part ends the window
            pck = verify_pck_chain(pem, with_, INTEL, at(seconds))
            verify_tcb_info(with_, pck, at(seconds))
            verify_qe_identity(with_, pck, at(seconds))
        assert re.search("dates|validity", caught.value.check)


@pytest.mark.parametrize(
    "entry", [v for v in manifest("sgx") if v["kind"] == "collateral"], ids=lambda v: v["id"]
)
def test_sgx_collateral_is_refused_by_name(entry: dict[str, Any]) -> None:
    """TCB info of SGX is Intel's as well, but speaks of another technology."""
    with_, now = collateral(entry["files"][0]), at(entry["valid_unix"][0])
    pck = unrevoked(parse_quote(read("tdx/quotes/mpc-v4-b9e238.bin")).pck_chain, now, with_.root_ca_crl)
    with pytest.raises(AttestationError) as caught:
        verify_tcb_info(with_, pck, now)
    assert caught.value.check is Check.TDX_TCB_INFO_KIND
    with pytest.raises(AttestationError) as caught:
        verify_qe_identity(with_, pck, now)
    assert caught.value.check is Check.TDX_QE_IDENTITY_KIND


DERIVED = {
    "forged-ak-unbound": Check.TDX_AK_BINDING,
    "forged-leaf-only-chain": Check.TDX_PCK_CHAIN,
    "forged-whole-pki-intel-names": Check.TDX_ROOT,
    "quote-ak-bit-flip": Check.TDX_AK_BINDING,
    "quote-body-bit-flip": Check.TDX_QUOTE_SIGNATURE,
    "quote-debug-bit-set": Check.TDX_QUOTE_SIGNATURE,
    "quote-qe-report-flip": Check.TDX_QE_REPORT_SIGNATURE,
    "quote-sig-bit-flip": Check.TDX_QUOTE_SIGNATURE,
    "quote-tee-type-sgx": Check.TDX_KIND,
    "quote-truncated": Check.TDX_FORMAT,
    "quote-version-6": Check.TDX_KIND,
}


@pytest.mark.parametrize(("name", "check"), DERIVED.items())
def test_forged_and_changed_quotes_are_refused(name: str, check: Check) -> None:
    """Each is refused for what was done to it."""
    verdict = judge(read(f"negative/derived/{name}.bin"), collateral(B0C06F), at(1787894484))
    assert isinstance(verdict, AttestationError)
    assert verdict.check is check


# Cases under a made-up root: the status they get, or the check that refuses them.
SYNTHETIC: dict[str, str | Check] = {
    "baseline": "UpToDate",
    "levels-reordered": "UpToDate",
    "module-status-outofdate": "OutOfDate",
    "qe-status-outofdate": "OutOfDate",
    "tcb-status-configuration": "ConfigurationNeeded",
    "tcb-status-outofdate": "OutOfDate",
    "tcb-status-outofdate-config": "OutOfDateConfigurationNeeded",
    "td-reserved-bit": Check.TDX_RESERVED_ATTRIBUTES,
    "intermediate-not-ca": Check.TDX_PCK_CHAIN,
    "module-identity-missing": Check.TDX_MODULE,
    "module-status-revoked": Check.TDX_TCB_REVOKED,
    "mr-signer-seam": Check.TDX_MODULE,
    "pck-crl-is-root-crl": Check.TDX_PCK_CRL,
    "pck-crl-not-yet-valid": Check.TDX_PCK_CRL_DATES,
    "pck-crl-of-processor-ca": Check.TDX_PCK_CRL,
    "pck-crl-wrong-key": Check.TDX_PCK_CRL,
    "pck-issued-by-pck-leaf": Check.TDX_PCK_CHAIN,
    "pck-not-yet-valid": Check.TDX_PCK_VALIDITY,
    "pck-revoked": Check.TDX_PCK_REVOKED,
    "platform-ca-other-key": Check.TDX_PCK_CHAIN,
    "platform-ca-revoked": Check.TDX_CA_REVOKED,
    "qe-auth-64": Check.TDX_FORMAT,
    "qe-auth-empty": Check.TDX_FORMAT,
    "qe-isvprodid": Check.TDX_QE_IDENTITY,
    "qe-mrsigner": Check.TDX_QE_IDENTITY,
    "qe-status-revoked": Check.TDX_TCB_REVOKED,
    "qeidentity-bad-signature": Check.TDX_QE_IDENTITY_SIGNATURE,
    "qeidentity-expired": Check.TDX_QE_IDENTITY_DATES,
    "qeidentity-id-qe": Check.TDX_QE_IDENTITY_KIND,
    "root-crl-expired": Check.TDX_ROOT_CRL_DATES,
    "seam-attributes": Check.TDX_MODULE,
    "tcb-15-components": Check.TDX_COLLATERAL_FORMAT,
    "tcb-empty-components": Check.TDX_COLLATERAL_FORMAT,
    "tcb-signer-revoked": Check.TDX_SIGNER_REVOKED,
    "tcb-status-unknown": Check.TDX_COLLATERAL_FORMAT,
    "tcbinfo-bad-signature": Check.TDX_TCB_INFO_SIGNATURE,
    "tcbinfo-expired": Check.TDX_TCB_INFO_DATES,
    "tcbinfo-id-sgx": Check.TDX_TCB_INFO_KIND,
    "tcbinfo-other-fmspc": Check.TDX_FMSPC,
    "tcbinfo-signed-by-pck-leaf": Check.TDX_SIGNER_CHAIN,
    "tee-tcb-svn-zero": Check.TDX_TCB_LEVEL,
}


@cache
def synthetic_root() -> x509.Certificate:
    """The root of the baseline's own chain, which all these cases are to be judged under."""
    quote = parse_quote(read("negative/synth-pki/baseline/quote.bin"))
    return parse_chain(quote.pck_chain, Check.TDX_PCK_CHAIN, "chain", length=3)[-1]


@pytest.mark.parametrize(("name", "expected"), SYNTHETIC.items())
def test_synthetic_cases_get_the_expected_verdict(name: str, expected: str | Check) -> None:
    """Revocation, roles, chain depth, every status: accepted, reported or refused by name."""
    root = Root("synthetic", spki_sha256(synthetic_root()))
    quote, with_ = (
        read(f"negative/synth-pki/{name}/quote.bin"),
        collateral(f"negative/synth-pki/{name}/collateral.json"),
    )
    verdict = judge(quote, with_, at(SYNTH_NOW), (root,))
    if isinstance(verdict, TdxClaims):
        violations = [v.check for v in ANY_TD.check(verdict, at(SYNTH_NOW))]
        accepted = verdict.tcb_status == expected == "UpToDate" and not violations
        reported = verdict.tcb_status == expected and violations == [Check.TDX_TCB_STATUS]
        assert accepted or reported or violations == [expected]
    else:
        assert verdict.check is expected
    refused = judge(quote, with_, at(SYNTH_NOW))
    assert isinstance(refused, AttestationError)  # whatever it is, Intel did not sign it


def test_no_synthetic_case_is_left_out() -> None:
    """The table above names every folder, and those whose verdict the manifest gives agree with it."""
    assert VECTORS is not None
    assert {p.name for p in (VECTORS / "negative" / "synth-pki").iterdir() if p.is_dir()} == set(SYNTHETIC)
    for entry in manifest("tdx"):
        name = entry["id"].removeprefix("synth-")
        if entry["id"].startswith("synth-") and name in SYNTHETIC and entry["expected"].startswith("REJECT"):
            assert isinstance(SYNTHETIC[name], Check)


@pytest.mark.parametrize("name", [n for n, expected in SYNTHETIC.items() if not isinstance(expected, Check)])
def test_accepted_synthetic_cases_are_accepted_by_the_second_opinion(name: str) -> None:
    """Where we give a status, dcap-qvl gives the same: we are not the laxer one."""
    quote, with_ = (
        read(f"negative/synth-pki/{name}/quote.bin"),
        collateral(f"negative/synth-pki/{name}/collateral.json"),
    )
    der = synthetic_root().public_bytes(Encoding.DER)
    assert ask(quote, with_, at(SYNTH_NOW), der)[0] == SYNTHETIC[name]
