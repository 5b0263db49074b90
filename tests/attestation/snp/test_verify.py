"""SNP verification: what is accepted, and every way to fail a check of authenticity."""

from __future__ import annotations

import warnings
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from attestation import snp
from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.roots import VENDOR, is_vendor
from attestation.simulator.snp import SimulatedSnp, SnpDefect
from attestation.snp import Product, SigningKey, Tcb
from attestation.snp.report import SIGNED_BYTES
from tests.attestation.snp.support import NOW, REPORT_DATA, claims_of, machine, refused_by

AUTHENTICITY = {
    SnpDefect.OTHER_ROOT: Check.SNP_ROOT,
    SnpDefect.ASK_NOT_CA: Check.SNP_CHAIN,
    SnpDefect.ASK_REVOKED: Check.SNP_REVOKED,
    SnpDefect.CRL_EXPIRED: Check.SNP_CRL_DATES,
    SnpDefect.CRL_NOT_YET: Check.SNP_CRL_DATES,
    SnpDefect.CRL_OTHER_KEY: Check.SNP_CRL_SIGNATURE,
    SnpDefect.VEK_EXPIRED: Check.SNP_CERTIFICATE_DATES,
    SnpDefect.VEK_OTHER_KEY: Check.SNP_SIGNATURE,
    SnpDefect.VEK_OTHER_KIND: Check.SNP_SIGNER_KIND,
    SnpDefect.VEK_OTHER_TCB: Check.SNP_TCB_BINDING,
    SnpDefect.VEK_OTHER_CHIP: Check.SNP_CHIP_BINDING,
    SnpDefect.VEK_OTHER_PRODUCT: Check.SNP_PRODUCT,
    SnpDefect.VEK_WRONG_ISSUER: Check.SNP_CHAIN,
    SnpDefect.VEK_FORGED: Check.SNP_CHAIN,
}


@pytest.mark.parametrize("product", Product)
@pytest.mark.parametrize("signer", SigningKey)
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_every_product_key_kind_and_version_verifies(
    product: Product, signer: SigningKey, version: int
) -> None:
    """Claims carry what the report and AMD's certificate say."""
    sim = machine(product, signer)
    claims = claims_of(sim, version=version)
    assert (claims.product, claims.signer, claims.root) == (product, signer, sim.root)
    assert claims.report_data == REPORT_DATA
    assert claims.measurement == claims.report.measurement
    assert claims.reported_tcb == claims.committed_tcb == claims.current_tcb == claims.launch_tcb == sim.tcb
    assert claims.chip_id == (sim.hwid if signer is SigningKey.VCEK else None)
    assert claims.csp_id == (None if signer is SigningKey.VCEK else "CN=simulated.cloud")
    assert claims.revocation_checked
    assert not is_vendor(claims.root)


@pytest.mark.parametrize("defect", AUTHENTICITY)
@pytest.mark.parametrize("signer", SigningKey)
def test_each_defect_of_the_collateral_fails_its_own_check(defect: SnpDefect, signer: SigningKey) -> None:
    """One thing wrong, one name for it."""
    if defect is SnpDefect.VEK_OTHER_CHIP and signer is SigningKey.VLEK:
        pytest.skip("a VLEK names no chip")
    refused_by(AUTHENTICITY[defect], VerificationError, lambda: claims_of(machine(signer=signer), defect))


def test_a_certificate_without_amds_extensions_is_malformed() -> None:
    """Nothing is assumed about a TCB that is not there."""
    refused_by(Check.SNP_VEK, MalformedError, lambda: claims_of(machine(), SnpDefect.VEK_WITHOUT_TCB))


def test_a_missing_crl_shows_in_the_claims() -> None:
    """No CRL is not an error of authenticity, and never silent: a policy sees it."""
    claims = claims_of(machine(), SnpDefect.CRL_MISSING)
    assert not claims.revocation_checked


def test_no_roots_trust_nobody() -> None:
    """Neither does a list of other roots, the vendor's own among them."""
    sim = machine()
    for roots in ((), VENDOR.amd):
        refused_by(
            Check.SNP_ROOT,
            VerificationError,
            lambda roots=roots: snp.verify(sim.report(REPORT_DATA), sim.collateral(NOW), roots, NOW),  # type: ignore[misc]
        )


@pytest.mark.parametrize(("changes", "check"), [
    ({"signer_info": 7 << 2}, Check.SNP_SIGNER_KIND),
    ({"signer_info": 1 << 2}, Check.SNP_SIGNER_KIND),
    ({"cpuid": b"\x19\x01\x01"}, Check.SNP_PRODUCT),
    ({"cpuid": b"\x1a\x02\x01"}, Check.SNP_PRODUCT),
    ({"cpuid": b"\x1a\x90\x01"}, Check.SNP_PRODUCT),
    ({"reported_tcb": Tcb(bootloader=10, snp=0x1B, microcode=0x57)}, Check.SNP_TCB_BINDING),
    ({"chip_id": b"\x01" * 64}, Check.SNP_CHIP_BINDING),
])  # fmt: skip
def test_a_report_that_says_otherwise_than_the_certificate_is_refused(
    changes: dict[str, Any], check: Check
) -> None:
    """Key kind, product, TCB and chip have to be those of the endorsement."""
    refused_by(check, VerificationError, lambda: claims_of(machine(), **changes))


def test_turins_chip_id_ends_after_eight_bytes() -> None:
    """The rest of the field has to be zero."""
    sim = machine(Product.TURIN)
    assert claims_of(sim).chip_id == sim.hwid
    longer = sim.hwid + b"\1" * 56
    refused_by(Check.SNP_CHIP_BINDING, VerificationError, lambda: claims_of(sim, chip_id=longer))


def test_a_masked_chip_id_is_told_from_the_certificate() -> None:
    """A host may mask the field; the key that signed still belongs to one chip."""
    assert claims_of(machine(), chip_id=bytes(64)).chip_id == machine().hwid


def test_reserved_tcb_bytes_are_malformed_whichever_tcb_it_is() -> None:
    """Each of the four TCBs is decoded by the layout of the product."""
    sim = machine(Product.TURIN)
    report = bytearray(sim.report(REPORT_DATA))
    report[0x180 + 5] = 1
    refused_by(
        Check.SNP_REPORT,
        MalformedError,
        lambda: snp.verify(bytes(report), sim.collateral(NOW), [sim.root], NOW),
    )


def test_claims_expire_with_the_first_part_that_does() -> None:
    """The CRL as a rule; without one, the endorsement certificate."""
    assert claims_of(machine()).collateral_expires == NOW + timedelta(days=30)
    assert claims_of(machine(), SnpDefect.CRL_MISSING).collateral_expires == NOW + timedelta(days=2000)


def test_dates_are_judged_anew_although_the_chain_is_remembered() -> None:
    """The same bytes are accepted at one time and refused at another, before and after."""
    sim = machine()
    report, collateral = sim.report(REPORT_DATA), sim.collateral(NOW)
    snp.verify(report, collateral, [sim.root], NOW)
    for moment, check in (
        (NOW + timedelta(days=31), Check.SNP_CRL_DATES),
        (NOW - timedelta(days=2), Check.SNP_CRL_DATES),
        (NOW + timedelta(days=3000), Check.SNP_CERTIFICATE_DATES),
        (datetime(2019, 1, 1, tzinfo=NOW.tzinfo), Check.SNP_CERTIFICATE_DATES),
    ):
        refused_by(
            check,
            VerificationError,
            lambda moment=moment: snp.verify(report, collateral, [sim.root], moment),  # type: ignore[misc]
        )
    snp.verify(report, collateral, [sim.root], NOW)


def test_revocation_is_judged_anew_although_the_chain_is_remembered() -> None:
    """A newer CRL refuses a chain that was accepted a moment ago."""
    sim = machine()
    report, collateral = sim.report(REPORT_DATA), sim.collateral(NOW)
    snp.verify(report, collateral, [sim.root], NOW)
    revoked = replace(collateral, crl=sim.collateral(NOW, SnpDefect.ASK_REVOKED).crl)
    refused_by(Check.SNP_REVOKED, VerificationError, lambda: snp.verify(report, revoked, [sim.root], NOW))


def test_certificates_signed_with_another_algorithm_are_refused() -> None:
    """AMD signs with RSA-PSS and SHA-384; PKCS #1 v1.5 by the same key will not do."""
    sim = machine()
    good = sim.collateral(NOW)
    ask, _ = x509.load_pem_x509_certificates(good.chain)
    with warnings.catch_warnings(action="ignore"):
        vek = x509.load_der_x509_certificate(good.vek)
    builder = x509.CertificateBuilder(
        ask.subject, vek.subject, vek.public_key(), 1, vek.not_valid_before_utc, vek.not_valid_after_utc
    )
    for extension in vek.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    weak = builder.sign(sim.keys.ask, hashes.SHA384(), rsa_padding=padding.PKCS1v15())
    weak_hash = builder.sign(
        sim.keys.ask, hashes.SHA256(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    )
    for cert in (weak, weak_hash):
        changed = replace(good, vek=cert.public_bytes(serialization.Encoding.DER))
        refused_by(
            Check.SNP_CHAIN,
            VerificationError,
            lambda changed=changed: snp.verify(sim.report(REPORT_DATA), changed, [sim.root], NOW),  # type: ignore[misc]
        )


@pytest.mark.parametrize("chain", ["", "ask", "ark ask", "ask ark ark", "ark ark"])
def test_the_chain_is_exactly_ask_and_ark(chain: str) -> None:
    """Fewer, more, or the wrong order are refused."""
    sim = machine()
    good = sim.collateral(NOW)
    pems = dict(zip(("ask", "ark"), good.chain.decode().split("-----END CERTIFICATE-----\n"), strict=False))
    pem = "".join(pems[name] + "-----END CERTIFICATE-----\n" for name in chain.split()).encode()
    with pytest.raises((MalformedError, VerificationError)) as caught:
        snp.verify(sim.report(REPORT_DATA), replace(good, chain=pem), [sim.root], NOW)
    assert caught.value.check in {Check.SNP_CHAIN, Check.SNP_ROOT}


def test_no_warning_for_amds_serial_zero() -> None:
    """AMD numbers every endorsement certificate 0; that, and nothing else, is accepted without a warning."""
    collateral = machine().collateral(NOW)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        snp.verify(machine().report(REPORT_DATA), collateral, [machine().root], NOW)
    assert not seen
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert x509.load_der_x509_certificate(collateral.vek).serial_number == 0
    assert seen


def test_keys_on_disk_keep_their_root(tmp_path: Path) -> None:
    """A second start of a simulated machine is the same machine."""
    first = SimulatedSnp.load_or_create(tmp_path / "keys")
    second = SimulatedSnp.load_or_create(tmp_path / "keys")
    assert first.root == second.root
    claims = snp.verify(first.report(REPORT_DATA), second.collateral(NOW), [second.root], NOW)
    assert claims.report_data == REPORT_DATA
    assert isinstance(first.keys.ark, rsa.RSAPrivateKey)
    assert first.keys.ark.key_size == 4096


_GOOD = AmdCollateral(vek=b"", chain=b"", crl=b"")


def _good() -> tuple[bytes, AmdCollateral]:
    global _GOOD  # noqa: PLW0603  # made once: collateral is signed anew at each call
    if not _GOOD.vek:
        _GOOD = machine().collateral(NOW)
    return machine().report(REPORT_DATA), _GOOD


@given(st.data())
def test_any_change_of_the_collateral_is_refused_with_a_name(data: st.DataObject) -> None:
    """Bytes of certificate, chain or CRL replaced or cut off: an error of ours, or the same claims."""
    report, collateral = _good()
    part = data.draw(st.sampled_from(["vek", "chain", "crl"]))
    changed = bytearray(getattr(collateral, part))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(changed)) | st.just(len(changed)))
    edited = AmdCollateral(
        vek=bytes(changed[:cut]) if part == "vek" else collateral.vek,
        chain=bytes(changed[:cut]) if part == "chain" else collateral.chain,
        crl=bytes(changed[:cut]) if part == "crl" else collateral.crl,
    )
    try:
        claims = snp.verify(report, edited, [machine().root], NOW)
    except AttestationError:
        return
    assert claims == replace(snp.verify(report, collateral, [machine().root], NOW), root=machine().root)


@pytest.mark.parametrize("part", ["vek", "crl"])
def test_algorithms_that_nobody_knows(part: str) -> None:
    """An identifier of a signature or hash algorithm that is none is a refusal of ours, wherever it stands."""
    report, collateral = _good()
    known, found = bytes.fromhex("0609608648016503040202"), 0  # SHA-384
    whole = getattr(collateral, part)
    while (found := whole.find(known, found + 1)) > 0:
        edited = bytearray(whole)
        edited[found + 2] = 0
        with pytest.raises(AttestationError):
            snp.verify(report, replace(collateral, **{part: bytes(edited)}), [machine().root], NOW)


@pytest.mark.parametrize(
    "bit", [0, 1, 511, 8 * 0x50, 8 * 0x180, 8 * SIGNED_BYTES - 1, 8 * SIGNED_BYTES, 8 * 1184 - 1]
)
def test_flipped_bits_are_refused(bit: int) -> None:
    """A sample of `test_flipping_any_bit_is_refused`, for every run."""
    _refuse_flipped(bit)


@pytest.mark.slow
def test_flipping_any_bit_is_refused() -> None:
    """Every single bit of a report: signed part, signature and what is reserved around it."""
    for bit in range(8 * 1184):
        _refuse_flipped(bit)


def _refuse_flipped(bit: int) -> None:
    report, collateral = _good()
    flipped = bytearray(report)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises((MalformedError, VerificationError)):
        snp.verify(bytes(flipped), collateral, [machine().root], NOW)
