"""Is this SEV-SNP report authentic? Bytes, collateral and pinned roots become claims, or an error that names the check.

Promised: the report was signed by a key that AMD endorsed for this chip (or cloud), product and TCB, and nothing in
the chain is out of date or revoked at `now`. Not promised: that the measurement, the guest policy or the TCB are
acceptable (that is `SnpPolicy`), nor that the report is fresh (that is the binding of `report_data`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation import _x509
from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.errors import VerificationError
from attestation.roots import Root
from attestation.snp.product import Product, Tcb, decode_tcb, product_of_cpuid
from attestation.snp.report import SIGNED_BYTES, Report, SigningKey, parse_report
from attestation.snp.vek import Vek, parse_vek

_ECDSA = ec.ECDSA(SHA384())


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """What an authentic report says. `verify` makes these; a policy decides whether they are acceptable."""

    root: Root
    collateral_expires: datetime  # the earliest end of any certificate or CRL relied on
    revocation_checked: bool  # False when no CRL came along; a policy has to allow that by name
    product: Product
    product_name: str  # as AMD's certificate has it, sometimes with a stepping
    signer: SigningKey
    chip_id: bytes | None  # None under a VLEK: it names a cloud, not a chip
    csp_id: str | None  # the cloud a VLEK was given to
    reported_tcb: Tcb
    committed_tcb: Tcb
    current_tcb: Tcb
    launch_tcb: Tcb
    report: Report

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def measurement(self) -> bytes:
        return self.report.measurement


def verify(report: bytes, collateral: AmdCollateral, roots: Sequence[Root], now: datetime) -> SnpClaims:
    """Verify one attestation report. No network, no clock; the first failure is raised.

    An empty `collateral.crl` is not an error here, and never goes unnoticed: the claims say
    `revocation_checked=False`, which a policy refuses unless it names `allow_missing_crl`.
    """
    parsed = parse_report(report)
    chain = _verify_chain(collateral.vek, collateral.chain)  #     1. signed link by link, up to the ARK
    root = _x509.find_root(chain.ark, roots, Check.SNP_ROOT)  #    2. a pinned ARK
    expires = _check_dates(chain, now)  #                          3. every certificate in date
    if collateral.crl:  #                                          4. no issuer revoked by AMD
        expires = min(expires, _check_revocation(chain, collateral.crl, now))
    vek = chain.vek
    _check_signer_kind(parsed, vek)  #                             5. the kind of key that the report names
    _check_product(parsed, chain)  #                               6. one product: CPUID, certificate, root
    tcb = decode_tcb(parsed.reported_tcb, vek.product, "reported_tcb")
    _check_tcb_binding(tcb, vek)  #                                7. the TCB that the key was derived for
    _check_chip_binding(parsed, vek)  #                            8. the chip that the key was derived for
    _verify_signature(report, parsed, vek)  #                      9. signed by that key
    return SnpClaims(
        root=root,
        collateral_expires=expires,
        revocation_checked=bool(collateral.crl),
        product=vek.product,
        product_name=vek.product_name,
        signer=vek.kind,
        chip_id=vek.hwid,
        csp_id=vek.csp_id,
        reported_tcb=tcb,
        committed_tcb=decode_tcb(parsed.committed_tcb, vek.product, "committed_tcb"),
        current_tcb=decode_tcb(parsed.current_tcb, vek.product, "current_tcb"),
        launch_tcb=decode_tcb(parsed.launch_tcb, vek.product, "launch_tcb"),
        report=parsed,
    )


# 1 to 4 ── the certificates ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chain:
    """Three certificates, each signed by the next. Neither pinned nor judged by date yet."""

    vek: Vek
    issuer: x509.Certificate  # ASK, or ASVK for a VLEK
    ark: x509.Certificate
    line: str  # what the ARK is named after


@lru_cache(maxsize=512)
def _verify_chain(vek_der: bytes, chain_pem: bytes) -> _Chain:
    """Remembered by content: nothing here depends on the time, on revocation or on whom one trusts."""
    vek = parse_vek(vek_der)
    issuer, ark = _x509.parse_chain(chain_pem, Check.SNP_CHAIN, "AMD certificate chain", length=2)
    for cert, signer in ((ark, ark), (issuer, ark), (vek.cert, issuer)):
        _check_algorithm(cert)
        _x509.verify_issued_by(cert, signer, Check.SNP_CHAIN)
    # AMD tells roles apart by name alone: under ARK-X, SEV-X (ASK) issues VCEKs and SEV-VLEK-X (ASVK) issues VLEKs
    line = _x509.common_name(ark.subject).removeprefix("ARK-")
    expected = f"SEV-{line}" if vek.kind is SigningKey.VCEK else f"SEV-VLEK-{line}"
    found = _x509.common_name(issuer.subject)
    if found != expected:
        detail = f"a {vek.kind} must be issued by {expected!r}, found {found!r}"
        raise VerificationError(Check.SNP_CHAIN, detail)
    return _Chain(vek=vek, issuer=issuer, ark=ark, line=line)


def _check_algorithm(cert: x509.Certificate) -> None:
    pss = cert.signature_algorithm_oid == x509.SignatureAlgorithmOID.RSASSA_PSS
    try:
        sha384 = isinstance(cert.signature_hash_algorithm, SHA384)
    except UnsupportedAlgorithm:
        sha384 = False
    if not pss or not sha384:
        name = _x509.common_name(cert.subject)
        raise VerificationError(Check.SNP_CHAIN, f"{name!r} must be signed with RSA-PSS and SHA-384")


def _check_dates(chain: _Chain, now: datetime) -> datetime:
    certs = (chain.vek.cert, chain.issuer, chain.ark)
    for cert in certs:
        _x509.check_validity(cert, now, Check.SNP_CERTIFICATE_DATES)
    return min(cert.not_valid_after_utc for cert in certs)


def _check_revocation(chain: _Chain, der: bytes, now: datetime) -> datetime:
    """AMD's CRL lists issuers only. A VCEK is never on it, which is why policies have TCB floors and chip lists."""
    crl = _x509.parse_crl(der, Check.SNP_CRL_SIGNATURE, "AMD CRL")
    until = _x509.verify_crl(
        crl, chain.ark, now, signature=Check.SNP_CRL_SIGNATURE, dates=Check.SNP_CRL_DATES
    )
    for cert in (chain.issuer, chain.ark):
        _x509.check_not_revoked(cert, crl, Check.SNP_REVOKED)
    return until


# 5 to 9 ── the report ─────────────────────────────────────────────────────────────────────────────────────


def _check_signer_kind(report: Report, vek: Vek) -> None:
    if report.signer.signing_key is not vek.kind:
        raise VerificationError(
            Check.SNP_SIGNER_KIND,
            f"the report names {report.signer.signing_key or 'no signing key'}, the certificate is a {vek.kind}",
        )


def _check_product(report: Report, chain: _Chain) -> None:
    vek = chain.vek
    if chain.line != vek.product:
        detail = f"the certificate is for {vek.product_name!r}, but chains to the root of {chain.line!r}"
        raise VerificationError(Check.SNP_PRODUCT, detail)
    if report.cpuid is None:  # version 2: the certificate's product name is all there is
        return
    product = product_of_cpuid(report.cpuid)
    if product is not vek.product:
        family, model, stepping = report.cpuid
        raise VerificationError(
            Check.SNP_PRODUCT,
            f"CPUID family {family:#x} model {model:#x} stepping {stepping} is {product or 'no product known here'}, "
            f"the certificate is for {vek.product_name!r}",
        )


def _check_tcb_binding(reported: Tcb, vek: Vek) -> None:
    if reported != vek.tcb:
        detail = f"reported_tcb is {reported}, the certificate says {vek.tcb}"
        raise VerificationError(Check.SNP_TCB_BINDING, detail)


def _check_chip_binding(report: Report, vek: Vek) -> None:
    """A host may mask the chip id to zeros; the certificate still says which chip signed."""
    if vek.hwid is None or not any(report.chip_id):
        return
    expected = vek.hwid.ljust(64, b"\0")  # Turin's ids are shorter than the field
    if report.chip_id != expected:
        detail = f"chip_id is {report.chip_id.hex()}, the certificate says {expected.hex()}"
        raise VerificationError(Check.SNP_CHIP_BINDING, detail)


def _verify_signature(data: bytes, report: Report, vek: Vek) -> None:
    try:
        vek.key.verify(encode_dss_signature(*report.signature), data[:SIGNED_BYTES], _ECDSA)
    except InvalidSignature as exc:
        raise VerificationError(
            Check.SNP_SIGNATURE, f"the report was not signed by this {vek.kind} ({vek.product_name})"
        ) from exc
