"""Real Azure evidence gets the verdict that its manifest expects, on SEV-SNP and on TDX."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest

from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.roots import VENDOR
from attestation.snp import SnpClaims, SnpPolicy
from attestation.tdx import TdxClaims, TdxPolicy
from attestation.vtpm import (
    PcrPolicy,
    VtpmClaims,
    VtpmPolicy,
    parse_evidence,
    parse_hcl_report,
    parse_quote,
    verify,
)
from tests.vectors import manifest, needs_vectors, read

pytestmark = needs_vectors
SNP, TDX = "azure-vtpm/az-snp-evidence-genoa.json", "azure-vtpm/az-tdx-evidence-v1.json"
NOW = datetime(2025, 10, 31, 14, 0, tzinfo=UTC)  # inside the window of the TDX collateral used


def _collateral() -> Collateral:
    chain = read("roots/amd_sev_genoa.pem") + read("roots/amd_ark_genoa.pem")
    intel = IntelCollateral.parse(read("tdx/collateral/tdx-00806f050000-20251019-ev17.json"))
    return Collateral(amd=AmdCollateral(vek=b"", chain=chain, crl=b""), intel=intel)


def _verify(path: str, **changes: Any) -> VtpmClaims:
    evidence = parse_evidence(read(path))
    nonce = parse_quote(evidence.quote).extra_data
    return verify(replace(evidence, **changes), _collateral(), VENDOR, NOW, nonce=nonce)


@pytest.mark.parametrize("entry", manifest("azure-vtpm"), ids=lambda e: str(e["id"]))
def test_evidence_gets_its_verdict(entry: dict[str, Any]) -> None:
    """Both samples are authentic: hardware, runtime data, key, quote and PCRs."""
    assert entry["expected"].startswith("ACCEPT")
    claims = _verify(entry["files"][0])
    assert len(claims.pcrs) == 24
    assert claims.configuration.secure_boot is True
    assert claims.root in (*VENDOR.amd, *VENDOR.intel)
    assert claims.collateral_expires > NOW


def test_the_hardware_is_what_its_own_verifier_says() -> None:
    """SEV-SNP claims under AMD's root, TDX claims under Intel's; the nonce is the quote's."""
    snp, tdx = _verify(SNP), _verify(TDX)
    assert isinstance(snp.hardware, SnpClaims)
    assert isinstance(tdx.hardware, TdxClaims)
    assert tdx.nonce == b"challenge"


@pytest.mark.parametrize("path", [SNP, TDX])
def test_a_policy_judges_vtpm_and_hardware(path: str) -> None:
    """With the PCRs named and the console allowed, what remains is what the hardware's own policy says."""
    claims = _verify(path)
    policy = VtpmPolicy(
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        pcrs=tuple(PcrPolicy(index=i, values=frozenset({claims.pcrs[i]})) for i in (4, 7, 9, 11)),
        allow_console=True,
    )
    remaining = {v.check.split(".")[0] for v in policy.check(claims, NOW)}
    assert remaining == {"snp" if path == SNP else "tdx"}
    strict = [v.check for v in replace(policy, allow_console=False).check(claims, NOW)]
    assert Check.VTPM_CONSOLE in strict


@pytest.mark.parametrize("path", [SNP, TDX])
def test_parts_of_another_vm_are_refused(path: str) -> None:
    """The one sample's quote, key or PCRs with the other's hardware are not one machine."""
    other = parse_evidence(read(TDX if path == SNP else SNP))
    with pytest.raises(VerificationError) as failed:
        _verify(path, signature=other.signature)
    assert failed.value.check is Check.VTPM_SIGNATURE
    with pytest.raises(VerificationError) as failed:
        _verify(path, pcrs=other.pcrs)
    assert failed.value.check is Check.VTPM_PCR_DIGEST
    with pytest.raises(VerificationError):
        _verify(path, hcl_report=other.hcl_report, td_quote=other.td_quote, vcek=other.vcek)


def test_runtime_data_of_another_td_is_refused() -> None:
    """A TD quote that commits to other runtime data, though genuine, vouches for no key here."""
    hcl = bytearray(parse_evidence(read(TDX)).hcl_report)
    at = hcl.index(b'"vmUniqueId":"6')
    hcl[at + 14] ^= 1
    with pytest.raises(VerificationError) as failed:
        _verify(TDX, hcl_report=bytes(hcl))
    assert failed.value.check is Check.VTPM_RUNTIME_DATA
    with pytest.raises(VerificationError) as failed:
        _verify(TDX, td_quote=b"")
    assert failed.value.check is Check.VTPM_RUNTIME_DATA


@pytest.mark.parametrize("path", [SNP, TDX])
def test_no_collateral_is_no_verdict(path: str) -> None:
    """Without the vendor's collateral nothing can be decided."""
    with pytest.raises(UnavailableError) as failed:
        verify(parse_evidence(read(path)), Collateral(), VENDOR, NOW, nonce=b"challenge")
    assert failed.value.check is Check.COLLATERAL_MISSING


@pytest.mark.parametrize("path", [SNP, TDX])
def test_report_data_is_the_runtime_datas_digest(path: str) -> None:
    """As Microsoft documents it: SHA-256, then zeros."""
    hcl = parse_hcl_report(parse_evidence(read(path)).hcl_report)
    assert _verify(path).hardware.report_data == sha256(hcl.runtime_data.raw).digest() + bytes(32)


@pytest.mark.parametrize("path", [SNP, TDX])
def test_every_truncation_is_malformed(path: str) -> None:
    """Of the quote, and of the HCL report up to the zeros that fill its NV index."""
    evidence = parse_evidence(read(path))
    for size in range(len(evidence.quote)):
        with pytest.raises(MalformedError):
            parse_quote(evidence.quote[:size])
    for size in range(len(evidence.hcl_report.rstrip(b"\0"))):
        with pytest.raises(MalformedError):
            parse_hcl_report(evidence.hcl_report[:size])


@pytest.mark.slow
@pytest.mark.parametrize("path", [SNP, TDX])
def test_every_bit_flip_of_quote_and_signature_is_refused(path: str) -> None:
    """Every bit of the TPM quote and its signature matters."""
    evidence = parse_evidence(read(path))
    for name in ("quote", "signature"):
        data = getattr(evidence, name)
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises((MalformedError, VerificationError)):
                _verify(path, **{name: bytes(flipped)})
