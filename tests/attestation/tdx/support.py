"""Helpers for tests on real evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from attestation._x509 import parse_chain, parse_crl, spki_sha256, verify_issued_by
from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import AttestationError
from attestation.roots import VENDOR, Root
from attestation.tdx import TdxClaims, verify
from attestation.tdx.chain import PckChain
from attestation.tdx.pck import parse_platform
from tests.vectors import read

INTEL = VENDOR.intel
B0C06F = "tdx/collateral/tdx-b0c06f000000-20260813-ev20.json"


def at(seconds: int) -> datetime:
    """A Unix time as the verifier wants it."""
    return datetime.fromtimestamp(seconds, UTC)


@cache
def collateral(path: str) -> IntelCollateral:
    """A collateral set of the vectors."""
    return IntelCollateral.parse(read(path))


def judge(
    quote: bytes, with_: IntelCollateral, now: datetime, roots: tuple[Root, ...] = INTEL
) -> TdxClaims | AttestationError:
    """Claims, or the error that refuses."""
    try:
        return verify(quote, with_, roots, now)
    except AttestationError as exc:
        return exc


def unrevoked(pem: bytes, now: datetime, root_crl: bytes) -> PckChain:
    """A quote's chain without its revocation lists: for vectors that lack them. Not a thing to do elsewhere."""
    leaf, ca, root_cert = parse_chain(pem, Check.TDX_PCK_CHAIN, "chain", length=3)
    verify_issued_by(leaf, ca, Check.TDX_PCK_CHAIN)
    verify_issued_by(ca, root_cert, Check.TDX_PCK_CHAIN)
    assert spki_sha256(root_cert) == INTEL[0].spki_sha256
    return PckChain(
        leaf=leaf,
        root_cert=root_cert,
        root=INTEL[0],
        root_crl=parse_crl(root_crl, Check.TDX_ROOT_CRL, "root CRL"),
        platform=parse_platform(leaf),
        crl_issued=now,
        expires=now,
    )
