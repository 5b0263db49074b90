"""TDX: is this quote genuine, on a platform Intel vouches for, at this time? In the order of Intel's QVL.

Authenticity, revocation, dates and TCB standing are judged here. What a TD is and which TCB status is good
enough are claims, for a policy to judge. Trusts Intel's keys alone: the delivered `pck_crl_issuer_chain` is
not used, since the PCK CRL must come from the very CA that issued the quote's certificate.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import MalformedError, VerificationError
from attestation.roots import Root
from attestation.tdx.chain import PckChain, verify_pck_chain, verify_tcb_signer
from attestation.tdx.claims import TdxClaims
from attestation.tdx.collateral import QeIdentity, TcbInfo, parse_qe_identity, parse_tcb_info
from attestation.tdx.quote import Quote, parse_quote
from attestation.tdx.signature import verify_signed_by, verify_signed_by_raw_key
from attestation.tdx.tcb import check_qe_identity, check_tcb

__all__ = ["TdxClaims", "verify"]

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")


def verify(quote: bytes, collateral: IntelCollateral, roots: Sequence[Root], now: datetime) -> TdxClaims:
    """Authentic claims from a quote that is genuine at `now`, or an error that names the check.

    Zero bytes after the quote are counted, for the policy to judge. Nothing is accepted here: see `TdxPolicy`.
    """
    # 1. a TDX quote and nothing else
    q = parse_quote(quote, padding=True)
    # 2. the platform's certificate: issued under a pinned root, in date, not revoked
    pck = verify_pck_chain(q.pck_chain, collateral, roots, now)
    # 3. Intel's word on TCB levels, and 4. on quoting enclaves: signed for this purpose, in date
    info, info_expires = verify_tcb_info(collateral, pck, now)
    identity, identity_expires = verify_qe_identity(collateral, pck, now)
    # 5. those levels are about this kind of platform
    check_same_platform(info, pck)
    # 6. the platform signed the quoting enclave's report, 7. which names the attestation key
    verify_qe_report(q, pck)
    check_key_binding(q)
    # 8. that enclave is Intel's
    qe_level = check_qe_identity(q.qe_report, identity)
    # 9. the attestation key signed this TD
    verify_quote_signature(q)
    # 10. how up to date all of it is
    tcb = check_tcb(q.td, pck.platform, info, qe_level)
    return TdxClaims(
        root=pck.root,
        quote_version=q.version,
        td=q.td,
        platform=pck.platform,
        tcb=tcb,
        tcb_evaluation_data_number=min(info.evaluation_number, identity.evaluation_number),
        collateral_issued=min(info.issued, identity.issued, pck.crl_issued),
        collateral_expires=min(info_expires, identity_expires, pck.expires),
        qe_isv_svn=q.qe_report.isv_svn,
        qe_vendor_id=q.qe_vendor_id,
        user_data=q.user_data,
        padding=q.padding,
    )


def verify_tcb_info(collateral: IntelCollateral, pck: PckChain, now: datetime) -> tuple[TcbInfo, datetime]:
    """Signed as delivered by Intel's TCB Signing certificate, for TDX, version 3, in date. Says until when."""
    signer = verify_tcb_signer(collateral.tcb_info_issuer_chain, pck, now)
    raw = _text(collateral.tcb_info, "TCB info")
    verify_signed_by(signer, collateral.tcb_info_signature, raw, Check.TDX_TCB_INFO_SIGNATURE, "TCB info")
    info = parse_tcb_info(collateral.tcb_info)
    if (info.id, info.version, info.tcb_type) != ("TDX", 3, 0):
        raise VerificationError(
            Check.TDX_TCB_INFO_KIND,
            f"expected TCB info TDX, version 3, type 0, found {info.id!r}, version {info.version}, type {info.tcb_type}",
        )
    _check_dates(info, now, Check.TDX_TCB_INFO_DATES, "TCB info")
    return info, min(info.next_update, signer.not_valid_after_utc)


def verify_qe_identity(
    collateral: IntelCollateral, pck: PckChain, now: datetime
) -> tuple[QeIdentity, datetime]:
    """As for TCB info, for the TD quoting enclave, version 2."""
    signer = verify_tcb_signer(collateral.qe_identity_issuer_chain, pck, now)
    raw = _text(collateral.qe_identity, "QE identity")
    verify_signed_by(
        signer, collateral.qe_identity_signature, raw, Check.TDX_QE_IDENTITY_SIGNATURE, "QE identity"
    )
    identity = parse_qe_identity(collateral.qe_identity)
    if (identity.id, identity.version) != ("TD_QE", 2):
        raise VerificationError(
            Check.TDX_QE_IDENTITY_KIND,
            f"expected QE identity TD_QE, version 2, found {identity.id!r}, version {identity.version}",
        )
    _check_dates(identity, now, Check.TDX_QE_IDENTITY_DATES, "QE identity")
    return identity, min(identity.next_update, signer.not_valid_after_utc)


def check_same_platform(info: TcbInfo, pck: PckChain) -> None:
    """TCB info for another kind of platform, or another provisioning enclave, says nothing about this one."""
    if info.fmspc != pck.platform.fmspc:
        raise VerificationError(
            Check.TDX_FMSPC,
            f"the platform has FMSPC {pck.platform.fmspc.hex()}, the TCB info is for {info.fmspc.hex()}",
        )
    if info.pce_id != pck.platform.pce_id:
        raise VerificationError(
            Check.TDX_PCE_ID,
            f"the platform has PCEID {pck.platform.pce_id.hex()}, the TCB info is for {info.pce_id.hex()}",
        )


def verify_qe_report(quote: Quote, pck: PckChain) -> None:
    """The quoting enclave ran on the platform of the PCK certificate."""
    if quote.qe_vendor_id != INTEL_QE_VENDOR:
        raise VerificationError(
            Check.TDX_QE_VENDOR,
            f"QE vendor: expected Intel {INTEL_QE_VENDOR.hex()}, found {quote.qe_vendor_id.hex()}",
        )
    verify_signed_by(
        pck.leaf,
        quote.qe_report_signature,
        quote.qe_report.raw,
        Check.TDX_QE_REPORT_SIGNATURE,
        "QE report signature",
    )


def check_key_binding(quote: Quote) -> None:
    """The quoting enclave's report names the attestation key, over all 64 bytes of its report data."""
    expected = sha256(quote.attestation_key + quote.qe_auth_data).digest() + bytes(32)
    if quote.qe_report.report_data != expected:
        raise VerificationError(
            Check.TDX_AK_BINDING,
            f"QE report data: expected {expected.hex()} for this attestation key, found {quote.qe_report.report_data.hex()}",
        )


def verify_quote_signature(quote: Quote) -> None:
    """The attestation key signed header and body, as delivered."""
    verify_signed_by_raw_key(
        quote.attestation_key, quote.signature, quote.signed, Check.TDX_QUOTE_SIGNATURE, "quote signature"
    )


def _text(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise MalformedError(Check.TDX_COLLATERAL_FORMAT, f"{what}: not encodable as UTF-8") from exc


def _check_dates(signed: TcbInfo | QeIdentity, now: datetime, check: Check, what: str) -> None:
    if not signed.issued <= now <= signed.next_update:
        raise VerificationError(
            check,
            f"{what} covers {signed.issued:%Y-%m-%dT%H:%M:%SZ} to {signed.next_update:%Y-%m-%dT%H:%M:%SZ}, "
            f"asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )
