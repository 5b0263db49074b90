"""Real evidence that is not whole: Intel's test PKI, and sets without revocation lists. Judged as far as it goes."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation._x509 import parse_crl, spki_sha256
from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import AttestationError, MalformedError
from attestation.roots import Root
from attestation.tdx import parse_quote
from attestation.tdx.chain import verify_pck_chain, verify_tcb_signer
from attestation.tdx.tcb import check_qe_identity, check_tcb
from attestation.tdx.verify import (
    check_key_binding,
    check_same_platform,
    verify_qe_identity,
    verify_qe_report,
    verify_quote_signature,
    verify_tcb_info,
)
from tests.attestation.tdx.support import B0C06F, INTEL, at, collateral, judge, unrevoked
from tests.vectors import needs_vectors, read

pytestmark = needs_vectors


def test_intels_test_pki_shares_names_with_intel_and_nothing_else() -> None:
    """The same names under another key: refused by the pinned root, accepted only under its own."""
    folder = "negative/intel-qvl-testpki-tdx"
    pem = read(f"{folder}/pckCert.pem") + b"\n" + read(f"{folder}/pckSignChain.pem")
    certs = x509.load_pem_x509_certificates(pem)
    ordered = sorted(certs, key=lambda c: ["PCK Cert", "PCK P", "Root"].index(_kind(c)))
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in ordered)
    lists = _with(
        collateral(B0C06F),
        root_ca_crl=read(f"{folder}/rootCaCrl.der"),
        pck_crl=read(f"{folder}/intermediateCaCrl.der"),
    )
    now = parse_crl(lists.pck_crl, Check.TDX_PCK_CRL, "CRL").last_update_utc + timedelta(days=1)
    with pytest.raises(AttestationError) as caught:
        verify_pck_chain(chain, lists, INTEL, now)
    assert caught.value.check is Check.TDX_ROOT
    own = Root("Intel's test PKI", spki_sha256(ordered[-1]))
    assert verify_pck_chain(chain, lists, (own,), now).root is own


def test_the_test_pkis_own_quote_is_none_that_intel_would_write() -> None:
    """It has no QE authentication data and its certificate as bare DER; the first is met first."""
    data = read("negative/intel-qvl-testpki-tdx/quote.dat")
    verdict = judge(data, collateral(B0C06F), at(1787894484))
    assert isinstance(verdict, MalformedError)
    assert verdict.check is Check.TDX_FORMAT


def _kind(cert: x509.Certificate) -> str:
    name = cert.subject.rfc4514_string()
    return next(kind for kind in ("PCK Cert", "PCK P", "Root") if kind in name)


def _with(base: IntelCollateral, **changes: Any) -> IntelCollateral:
    return IntelCollateral(
        **{name: changes.get(name, getattr(base, name)) for name in base.__dataclass_fields__}
    )


def _signed(path: str, key: str) -> tuple[str, bytes]:
    """The exact text Intel signed, and the signature, from an answer of Intel's service."""
    text = read(path).decode()
    match = re.search(rf'"{key}":(\{{.*\}}),"signature"', text, re.DOTALL)
    assert match is not None
    return match.group(1), bytes.fromhex(json.loads(text)["signature"])


def oasis(info: str, identity: str, lists: str) -> IntelCollateral:
    """TCB info and QE identity of this set, with revocation lists from another one."""
    folder = "tdx/oasis-no-crl"
    chain = read(f"{folder}/tcb_info_v3_fmspc_00606A000000_certs.pem").decode()
    info_text, info_signature = _signed(f"{folder}/{info}", "tcbInfo")
    identity_text, identity_signature = _signed(f"{folder}/{identity}", "enclaveIdentity")
    return _with(
        collateral(lists),
        tcb_info_issuer_chain=chain,
        tcb_info=info_text,
        tcb_info_signature=info_signature,
        qe_identity_issuer_chain=chain,
        qe_identity=identity_text,
        qe_identity_signature=identity_signature,
    )


def test_a_platform_below_every_level_is_refused() -> None:
    """An old platform against collateral of its time, with the revocation lists of that week."""
    with_ = oasis(
        "tcb_info_v3_tdx_fmspc_50806F000000.json",
        "qe_identity_v2_tdx.json",
        "tdx/collateral/tdx-50806f000000-20230618-ev15.json",
    )
    quote = read("tdx/oasis-no-crl/quote_v4_tdx_ecdsa_p256_out_of_date.bin")
    verdict = judge(quote, with_, at(1687091776))
    assert isinstance(verdict, AttestationError)
    assert verdict.check is Check.TDX_TCB_LEVEL


def test_without_a_revocation_list_of_the_day_there_is_no_verdict() -> None:
    """All else of this set verifies at its time; a PCK CRL of another month is no substitute for the right one."""
    now = at(1725263032)
    with_ = oasis(
        "tcb_info_v3_tdx_fmspc_C0806F000000.json",
        "qe_identity_v2_tdx2.json",
        "tdx/collateral/tdx-00806f050000-20250121-ev17.json",
    )
    data = read("tdx/oasis-no-crl/quote_v4_tdx_ecdsa_p256.bin")
    refused = judge(data, with_, now)
    assert isinstance(refused, AttestationError)
    assert refused.check is Check.TDX_PCK_CRL_DATES

    quote = parse_quote(data)
    pck = unrevoked(quote.pck_chain, now, with_.root_ca_crl)
    info, _ = verify_tcb_info(with_, pck, now)
    identity, _ = verify_qe_identity(with_, pck, now)
    check_same_platform(info, pck)
    verify_qe_report(quote, pck)
    check_key_binding(quote)
    verify_quote_signature(quote)
    assert (
        check_tcb(quote.td, pck.platform, info, check_qe_identity(quote.qe_report, identity)).status
        == "UpToDate"
    )


def test_the_platform_ca_does_not_sign_tcb_info() -> None:
    """Intel's Platform CA is issued by the root too, but that is not its role."""
    now = at(1725263032)
    chain = read("tdx/oasis-no-crl/tcb_info_v3_fmspc_00606A000000_certs_bad.pem").decode()
    quote = parse_quote(read("tdx/oasis-no-crl/quote_v4_tdx_ecdsa_p256.bin"))
    pck = unrevoked(quote.pck_chain, now, collateral(B0C06F).root_ca_crl)
    with pytest.raises(AttestationError) as caught:
        verify_tcb_signer(chain, pck, now)
    assert caught.value.check is Check.TDX_SIGNER_ROLE


def test_device_files_end_in_zeros() -> None:
    """The padded form of a quote is the same quote, where padding is asked for."""
    padded = read("tdx/oasis-no-crl/quote_v4_tdx_ecdsa_p256_trailing.bin")
    plain = read("tdx/oasis-no-crl/quote_v4_tdx_ecdsa_p256.bin")
    with pytest.raises(MalformedError):
        parse_quote(padded)
    quote = parse_quote(padded, padding=True)
    assert quote.padding == len(padded) - len(plain)
