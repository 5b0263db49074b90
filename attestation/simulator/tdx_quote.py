"""TDX quotes of the simulated platform, byte for byte as Intel's quoting enclave writes them."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.simulator import tdx_collateral as intel
from attestation.simulator.pki import PrivateKey
from attestation.simulator.tdx_defects import TdxDefect as D
from attestation.tdx.quote import BODY_BYTES, TD10, TD15, ServiceTdHistory, TdReport

INTEL_QE_VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
AUTH_DATA = bytes(range(32))


def _measured(what: str) -> bytes:
    return sha256(f"simulated {what}".encode()).digest() + bytes(16)


DEFAULT_TD = TdReport(
    body_type=TD10,
    tee_tcb_svn=bytes((intel.MODULE_SVN, intel.MODULE_VERSION, *intel.TDX_COMPONENTS[2:])),
    mr_seam=_measured("TDX module"),
    mr_signer_seam=bytes(48),
    seam_attributes=0,
    td_attributes=1 << 28,  # SEPT_VE_DISABLE
    xfam=0x602E7,
    mrtd=_measured("MRTD"),
    mr_config_id=bytes(48),
    mr_owner=bytes(48),
    mr_owner_config=bytes(48),
    rtmr0=_measured("RTMR0"),
    rtmr1=_measured("RTMR1"),
    rtmr2=_measured("RTMR2"),
    rtmr3=bytes(48),
    report_data=bytes(64),
)
"""A TD 1.0 that a policy with its measurements accepts; `dataclasses.replace` makes others of it."""

DEFAULT_TD15 = replace(
    DEFAULT_TD, body_type=TD15, tee_tcb_svn2=DEFAULT_TD.tee_tcb_svn, mr_service_td=bytes(48)
)
"""The same as a TD 1.5, for quotes of version 5."""

_SEPT = DEFAULT_TD.td_attributes
_TD_EDITS: dict[D | None, dict[str, Any]] = {
    D.MODULE_OF_OTHER_SIGNER: {"mr_signer_seam": intel.MODULE_MAKER},
    D.MODULE_MAKER: {"mr_signer_seam": intel.MODULE_MAKER},
    D.MODULE_ATTRIBUTES: {"seam_attributes": 1},
    D.MODULE_UNKNOWN: {"tee_tcb_svn": bytes((7, 9, *intel.TDX_COMPONENTS[2:]))},
    D.MODULE_TOO_OLD: {"tee_tcb_svn": bytes((1, 1, *intel.TDX_COMPONENTS[2:]))},
    D.TCB_TOO_OLD: {"tee_tcb_svn": bytes((7, 1, 1, *intel.TDX_COMPONENTS[3:]))},
    D.DEBUG: {"td_attributes": _SEPT | 1},
    D.SEPT_VE: {"td_attributes": 0},
    D.MIGRATABLE: {"td_attributes": _SEPT | 1 << 29},
    D.PKS: {"td_attributes": _SEPT | 1 << 30},
    D.PERFMON: {"td_attributes": _SEPT | 1 << 63},
    D.RESERVED_ATTRIBUTE: {"td_attributes": _SEPT | 1 << 9},
    D.UNKNOWN_XFAM: {"xfam": 0x602E7 | 1 << 40},
    D.SERVICE_TD: {"mr_service_td": _measured("service TD")},
    D.MR_CONFIG_ID: {"mr_config_id": _measured("MRCONFIGID")},
    D.MR_OWNER: {"mr_owner": _measured("MROWNER")},
    D.MR_OWNER_CONFIG: {"mr_owner_config": _measured("MROWNERCONFIG")},
}
_HEADERS: dict[D | None, tuple[int, int]] = {
    D.SGX_QUOTE: (3, 2),
    D.UNKNOWN_VERSION: (6, 2),
    D.UNKNOWN_KEY_TYPE: (4, 3),
}
_QE_ATTRIBUTES: dict[D | None, int] = {D.QE_DEBUG: 0x17, D.QE_ATTRIBUTES: 0x35}
_TAILS: dict[D | None, bytes] = {D.TRAILING_BYTES: b"\0\0\x01", D.TRAILING_ZEROS: bytes(70)}


def make_quote(
    td: TdReport,
    *,
    version: int,
    chain: bytes,
    pck_key: PrivateKey,
    attestation_key: PrivateKey,
    stranger: PrivateKey,
    defect: D | None,
) -> bytes:
    """The quote for `td`, with `chain` (PEM) as the platform's certificates."""
    if defect is D.SERVICE_TD and td.body_type == TD10:
        td, version = replace(DEFAULT_TD15, report_data=td.report_data), 5
    signed = _header(version, defect) + _body(replace(td, **_TD_EDITS.get(defect, {})), version)
    signing_key = stranger if defect is D.KEY_UNBOUND else attestation_key
    signature = sign_raw(signing_key, signed)
    public = b"\xff" * 64 if defect is D.KEY_NO_POINT else _point(signing_key)
    bound = _point(attestation_key) if defect is D.KEY_UNBOUND else public
    report = _qe_report(sha256(bound + AUTH_DATA).digest(), defect)
    report_signature = sign_raw(pck_key, report)
    if defect is D.TD_CHANGED:
        signed = _flip(signed, -200)  # inside RTMR2
    if defect is D.SIGNATURE_CHANGED:
        signature = _flip(signature, 40)
    if defect is D.QE_REPORT_CHANGED:
        report = _flip(report, 70)  # inside MRENCLAVE, which no identity names
    auth = len(AUTH_DATA).to_bytes(2, "little") + AUTH_DATA
    inner = report + report_signature + auth + _sized(5, chain)
    data = signature + public + _sized(6, inner)
    quote = signed + len(data).to_bytes(4, "little") + data
    quote += _TAILS.get(defect, b"")
    return quote[:-100] if defect is D.TRUNCATED else quote


def _header(version: int, defect: D | None) -> bytes:
    version, key_type = _HEADERS.get(defect, (version, 2))
    vendor = bytes(16) if defect is D.OTHER_QE_VENDOR else INTEL_QE_VENDOR
    numbers = version.to_bytes(2, "little") + key_type.to_bytes(2, "little") + (0x81).to_bytes(4, "little")
    return numbers + bytes(4) + vendor + b"SIMULATED".ljust(20, b"\0")


def _body(td: TdReport, version: int) -> bytes:
    words = (td.seam_attributes, td.td_attributes, td.xfam)
    body = td.tee_tcb_svn + td.mr_seam + td.mr_signer_seam + b"".join(w.to_bytes(8, "little") for w in words)
    body += td.mrtd + td.mr_config_id + td.mr_owner + td.mr_owner_config
    body += td.rtmr0 + td.rtmr1 + td.rtmr2 + td.rtmr3 + td.report_data
    body += (
        (td.tee_tcb_svn2 or b"") + (td.mr_service_td or b"") + (_history(td.history) if td.history else b"")
    )
    if len(body) != BODY_BYTES[td.body_type] or (version == 4 and td.body_type != TD10):
        raise ValueError(f"a TD report of {len(body)} bytes does not go into a quote of version {version}")
    if version == 4:
        return body
    return td.body_type.to_bytes(2, "little") + len(body).to_bytes(4, "little") + body


def _history(history: ServiceTdHistory) -> bytes:
    return (
        bytes([history.vmid])
        + history.td_id
        + history.dev_info
        + history.init_service_td_hash
        + history.init_service_td_attributes
        + history.init_cpu_svn
        + history.init_tee_tcb_svn
        + history.init_tee_fmspc
        + history.current_service_td_hash
        + history.current_service_td_attributes
    )


def _qe_report(bound: bytes, defect: D | None) -> bytes:
    misc_select = bytes([defect is D.QE_MISCSELECT, 0, 0, 0])
    attributes = bytes([_QE_ATTRIBUTES.get(defect, 0x15)]) + bytes(15)
    signer = bytes(32) if defect is D.QE_OF_OTHER_SIGNER else intel.QE_SIGNER
    product = 1 if defect is D.QE_OF_OTHER_PRODUCT else intel.QE_PRODUCT
    svn = 1 if defect is D.QE_TOO_OLD else intel.QE_SVN
    report = bytes(intel.SGX_COMPONENTS) + misc_select + bytes(28) + attributes
    report += _measured("quoting enclave")[:32] + bytes(32) + signer + bytes(96)
    report += product.to_bytes(2, "little") + svn.to_bytes(2, "little") + bytes(60)
    return report + bound + (b"\x01" * 32 if defect is D.KEY_HALF_BOUND else bytes(32))


def sign_raw(key: PrivateKey, data: bytes) -> bytes:
    """ECDSA P-256 with SHA-256, r and s of 32 bytes each."""
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("Intel signs with P-256")
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _point(key: PrivateKey) -> bytes:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("Intel signs with P-256")
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]


def _sized(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(content).to_bytes(4, "little") + content


def _flip(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)
