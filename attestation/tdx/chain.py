"""Intel's certificates: the platform's PCK chain, the CRLs over it, and the signer of TCB info and QE identity.

Roles are told by common name *and* by place in a chain of exact length to the pinned root, so that no Intel
certificate can do another's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from attestation._x509 import (
    check_not_revoked,
    check_validity,
    common_name,
    find_root,
    parse_chain,
    parse_crl,
    verify_crl,
    verify_issued_by,
)
from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import VerificationError
from attestation.roots import Root
from attestation.tdx.pck import Platform, parse_platform

ROOT_CA = "Intel SGX Root CA"
PCK_CAS = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
PCK_CERTIFICATE = "Intel SGX PCK Certificate"
TCB_SIGNING = "Intel SGX TCB Signing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PckChain:
    """A platform certificate that is Intel's, in date and not revoked."""

    leaf: x509.Certificate
    root_cert: x509.Certificate
    root: Root
    root_crl: x509.CertificateRevocationList
    platform: Platform
    crl_issued: datetime  # of the PCK CRL; the root CRL is made once a year
    expires: datetime


def verify_pck_chain(
    pem: bytes, collateral: IntelCollateral, roots: Sequence[Root], now: datetime
) -> PckChain:
    """The quote's own chain, leaf first: PCK certificate, Platform or Processor CA, pinned root."""
    chain = parse_chain(pem, Check.TDX_PCK_CHAIN, "PCK certificate chain", length=3)
    leaf, ca, root_cert = chain
    root = find_root(root_cert, roots, Check.TDX_ROOT)
    for cert, issuer in ((root_cert, root_cert), (ca, root_cert), (leaf, ca)):
        verify_issued_by(cert, issuer, Check.TDX_PCK_CHAIN)
    _check_role(root_cert, (ROOT_CA,), Check.TDX_PCK_ROLE)
    _check_role(ca, PCK_CAS, Check.TDX_PCK_ROLE)
    _check_role(leaf, (PCK_CERTIFICATE,), Check.TDX_PCK_ROLE)
    for cert in chain:
        check_validity(cert, now, Check.TDX_PCK_VALIDITY)

    root_crl = parse_crl(collateral.root_ca_crl, Check.TDX_COLLATERAL_FORMAT, "root CA CRL")
    pck_crl = parse_crl(collateral.pck_crl, Check.TDX_COLLATERAL_FORMAT, "PCK CRL")
    root_until = verify_crl(
        root_crl, root_cert, now, signature=Check.TDX_ROOT_CRL, dates=Check.TDX_ROOT_CRL_DATES
    )
    pck_until = verify_crl(pck_crl, ca, now, signature=Check.TDX_PCK_CRL, dates=Check.TDX_PCK_CRL_DATES)
    check_not_revoked(ca, root_crl, Check.TDX_CA_REVOKED)
    check_not_revoked(leaf, pck_crl, Check.TDX_PCK_REVOKED)
    return PckChain(
        leaf=leaf,
        root_cert=root_cert,
        root=root,
        root_crl=root_crl,
        platform=parse_platform(leaf),
        crl_issued=pck_crl.last_update_utc,
        expires=min(root_until, pck_until, *(cert.not_valid_after_utc for cert in chain)),
    )


def verify_tcb_signer(pem: str, pck: PckChain, now: datetime) -> x509.Certificate:
    """Intel's TCB Signing certificate, issued by the very root that the platform's chain ends in."""
    signer, root_cert = parse_chain(
        pem.encode(errors="replace"), Check.TDX_SIGNER_CHAIN, "TCB signing chain", length=2
    )
    find_root(root_cert, (pck.root,), Check.TDX_SIGNER_CHAIN)
    verify_issued_by(signer, pck.root_cert, Check.TDX_SIGNER_CHAIN)
    _check_role(signer, (TCB_SIGNING,), Check.TDX_SIGNER_ROLE)
    check_validity(signer, now, Check.TDX_SIGNER_VALIDITY)
    check_not_revoked(signer, pck.root_crl, Check.TDX_SIGNER_REVOKED)
    return signer


def _check_role(cert: x509.Certificate, names: Sequence[str], check: Check) -> None:
    found = common_name(cert.subject)
    if found not in names:
        raise VerificationError(
            check, f"expected a certificate of {' or '.join(map(repr, names))}, found {found!r}"
        )
