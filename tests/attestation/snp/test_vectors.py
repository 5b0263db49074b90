"""Real AMD evidence: every vector of the manifest gets the verdict that the manifest expects."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import pytest

from attestation import _x509, snp
from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.errors import MalformedError, VerificationError
from attestation.roots import VENDOR
from attestation.snp import Product, SigningKey
from attestation.snp.policy import AUTHENTIC_ONLY
from attestation.snp.vek import parse_vek
from tests.attestation.snp.support import NOW, refused_by
from tests.vectors import manifest, needs_vectors, read

pytestmark = needs_vectors


def _file(entry: dict[str, Any], name: str) -> str | None:
    return next((path for path in entry["files"] if PurePosixPath(path).name == name), None)


def _collateral(entry: dict[str, Any]) -> AmdCollateral:
    vek, chain = _file(entry, "vek.der"), _file(entry, "chain.pem")
    assert vek is not None
    assert chain is not None
    return AmdCollateral(vek=read(vek), chain=read(chain), crl=b"")


REPORTS = [entry for entry in manifest("snp") if _file(entry, "report.bin")]
SIGNED = [entry for entry in REPORTS if _file(entry, "vek.der")]
FAKE = [entry for entry in REPORTS if entry["expected"].startswith("REJECT")]
BARE = [entry for entry in REPORTS if entry not in SIGNED and entry not in FAKE]


def _ids(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["id"] for entry in entries]


@pytest.mark.parametrize("entry", SIGNED, ids=_ids(SIGNED))
def test_signed_reports_verify_under_amds_roots(entry: dict[str, Any]) -> None:
    """Signature, chain, TCB and chip id hold; a debuggable guest is refused by policy, and by that alone."""
    report = read(_file(entry, "report.bin") or "")
    claims = snp.verify(report, _collateral(entry), VENDOR.amd, datetime.fromisoformat(entry["valid_from"]))
    meta = entry["meta"]
    assert (claims.product, claims.signer, claims.report.version) == (
        meta["product"], meta["signing_key"], meta["version"]
    )  # fmt: skip
    assert claims.measurement.hex() == meta["measurement"]
    assert claims.report_data.hex() == meta["report_data"]
    assert (claims.report.policy.smt, claims.report.policy.migration_agent) == (
        meta["smt"],
        meta["migrate_ma"],
    )
    parts = {"ucode": "microcode", "bl": "bootloader"}
    found = dict(claims.reported_tcb.parts())
    assert {
        parts.get(name, name): level for name, level in entry["checked"]["tcb"].items()
    }.items() <= found.items()
    if claims.signer is SigningKey.VCEK:
        assert claims.report.chip_id.startswith(claims.chip_id or b"?")
    lenient = replace(AUTHENTIC_ONLY, allow_missing_crl=True)
    refused = [v.check for v in lenient.check(claims, NOW)]
    assert refused == ([Check.SNP_DEBUG] if "REJECT by policy: debug" in entry["expected"] else [])


@pytest.mark.parametrize("entry", SIGNED, ids=_ids(SIGNED))
def test_signed_reports_are_refused_before_their_certificates(entry: dict[str, Any]) -> None:
    """The same evidence a second before the certificate's first."""
    early = datetime(2020, 1, 1, tzinfo=NOW.tzinfo)
    report = read(_file(entry, "report.bin") or "")
    refused_by(
        Check.SNP_CERTIFICATE_DATES,
        VerificationError,
        lambda: snp.verify(report, _collateral(entry), VENDOR.amd, early),
    )


@pytest.mark.parametrize("entry", SIGNED, ids=_ids(SIGNED))
def test_signed_reports_fail_with_another_machines_certificate(entry: dict[str, Any]) -> None:
    """No two machines of the vectors share an endorsement, except for two reports of one machine."""
    report, moment = read(_file(entry, "report.bin") or ""), datetime(2026, 7, 1, tzinfo=NOW.tzinfo)
    own = parse_vek(_collateral(entry).vek).key
    others = [other for other in SIGNED if parse_vek(_collateral(other).vek).key != own]
    assert others
    for other in others:
        with pytest.raises(
            (VerificationError, MalformedError)
        ):  # version 2 has no CPUID: Turin's layout may not fit
            snp.verify(report, _collateral(other), VENDOR.amd, moment)


@pytest.mark.parametrize("entry", BARE, ids=_ids(BARE))
def test_reports_without_a_certificate_parse(entry: dict[str, Any]) -> None:
    """Their structure holds; more cannot be said of them."""
    parsed = snp.parse_report(read(_file(entry, "report.bin") or ""))
    assert parsed.measurement.hex() == entry["meta"]["measurement"]


@pytest.mark.parametrize("entry", FAKE, ids=_ids(FAKE))
def test_fake_reports_are_refused(entry: dict[str, Any]) -> None:
    """Made-up version 1 reports are not of any format that AMD's firmware writes today."""
    report = read(_file(entry, "report.bin") or "")
    refused_by(Check.SNP_REPORT, MalformedError, lambda: snp.parse_report(report))


@pytest.mark.parametrize("name", ["legacy", "new"])
def test_both_hardware_id_encodings_parse_and_the_forged_chain_is_refused(name: str) -> None:
    """Bare and wrapped hardware ids are both read; neither certificate was signed by AMD's ASK."""
    der = read(f"negative/snp-trustee-vcek-invalid/test-vcek-invalid-{name}.der")
    assert parse_vek(der).hwid == bytes(range(64))
    entry = next(e for e in SIGNED if e["meta"]["product"] == "Milan" and e["meta"]["signing_key"] == "VCEK")
    forged = replace(_collateral(entry), vek=der)
    report = read(_file(entry, "report.bin") or "")
    refused_by(Check.SNP_CHAIN, VerificationError, lambda: snp.verify(report, forged, VENDOR.amd, NOW))


def test_the_turin_certificate_chains_to_amd() -> None:
    """A report that it did not sign is refused later than the chain: at the TCB it stands for."""
    entry = next(e for e in SIGNED if e["meta"]["product"] == "Turin")
    other = replace(_collateral(entry), vek=read("snp/extra/virtee-turin-vcek.der"))
    assert parse_vek(other.vek).product is Product.TURIN
    report = read(_file(entry, "report.bin") or "")
    refused_by(Check.SNP_TCB_BINDING, VerificationError, lambda: snp.verify(report, other, VENDOR.amd, NOW))


def test_the_pinned_roots_are_the_certificates_that_amd_publishes() -> None:
    """The three ARKs of the vectors carry the pinned keys."""
    for product in Product:
        ark = _x509.parse_certificate(read(f"roots/amd_ark_{product.lower()}.pem"), Check.SNP_CHAIN, "ARK")
        assert _x509.find_root(ark, VENDOR.amd, Check.SNP_ROOT).name == f"ARK-{product}"
