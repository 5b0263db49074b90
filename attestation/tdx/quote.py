"""TDX quotes, version 4 and 5: bytes to a `Quote`. Judges nothing; everything in it is untrusted.

Layout (Intel TDX DCAP Quoting Library API, appendix 3), little endian:

    header            48   version, key type, TEE type, reserved, QE vendor id, user data
    body type + size   6   version 5 only
    body                   584 (TD 1.0), 648 (TD 1.5) or 885 (TD 1.5 with service-TD history)
    signature data    4+n  ECDSA signature 64, attestation key 64, certification data type 6:
                           QE report 384, its signature 64, QE authentication data 2+n,
                           certification data type 5: the PCK chain as PEM
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_QUOTE_BYTES = 64 * 1024
QE_AUTH_BYTES = 32  # any length could be bound to the key; Intel's QE writes this one

ECDSA_P256 = 2
TEE_SGX, TEE_TDX = 0x00, 0x81
TD10, TD15, TD15EX = 2, 3, 4
BODY_BYTES = {TD10: 584, TD15: 648, TD15EX: 885}
_QE_REPORT_DATA, _PCK_CHAIN = 6, 5

# TD 1.0: SVNs, module, three attribute words, eight registers of 48 bytes, report data
_TD10 = struct.Struct("<16s 48s48s QQQ 48s48s48s48s 48s48s48s48s 64s")
_TD10_FIELDS = (
    *("tee_tcb_svn", "mr_seam", "mr_signer_seam", "seam_attributes", "td_attributes", "xfam"),
    *(
        "mrtd",
        "mr_config_id",
        "mr_owner",
        "mr_owner_config",
        "rtmr0",
        "rtmr1",
        "rtmr2",
        "rtmr3",
        "report_data",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTdHistory:
    """What TD 1.5ex adds: which service TDs touched this TD, at its start and now."""

    vmid: int
    td_id: bytes
    dev_info: bytes
    init_service_td_hash: bytes
    init_service_td_attributes: bytes
    init_cpu_svn: bytes
    init_tee_tcb_svn: bytes
    init_tee_fmspc: bytes
    current_service_td_hash: bytes
    current_service_td_attributes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The TD as the TDX module measured it. Attribute words are integers, bit 0 first."""

    body_type: int
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: int
    td_attributes: int
    xfam: int
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None  # TD 1.5: the TCB now, where tee_tcb_svn is the TCB at launch
    mr_service_td: bytes | None = None
    history: ServiceTdHistory | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QeReport:
    """The quoting enclave as the CPU measured it."""

    raw: bytes
    cpu_svn: bytes
    misc_select: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    isv_prod_id: int
    isv_svn: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A well-formed quote that nobody has verified yet."""

    version: int
    qe_vendor_id: bytes
    user_data: bytes
    td: TdReport
    signed: bytes  # header and body exactly as the attestation key signed them
    signature: bytes
    attestation_key: bytes
    qe_report: QeReport
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain: bytes
    padding: int  # zero bytes after the end


def parse_quote(data: bytes, *, padding: bool = False) -> Quote:
    """The quote in `data`. Bytes after it are refused; with `padding`, zeros are counted and left out."""
    if len(data) > MAX_QUOTE_BYTES:
        raise MalformedError(
            Check.TDX_FORMAT, f"TDX quote: {len(data)} bytes, the limit is {MAX_QUOTE_BYTES}"
        )
    reader = Reader(data, Check.TDX_FORMAT, "TDX quote")
    version = _version(reader)
    reader.take(4, "reserved header field")
    vendor_id = reader.take(16, "QE vendor id")
    user_data = reader.take(20, "user data")
    body_type = TD10 if version == 4 else _body_type(reader)
    td = _td_report(reader.nested(BODY_BYTES[body_type], "TD report"), body_type)
    signed = data[: reader.offset]
    signature_data = reader.nested(reader.uint(4, "signature data length"), "signature data")
    rest = reader.remaining
    reader.end(padding=padding)

    signature = signature_data.take(64, "quote signature")
    attestation_key = signature_data.take(64, "attestation key")
    certification = _certification_data(signature_data, _QE_REPORT_DATA, "QE report certification data")
    qe_report = _qe_report(certification.take(384, "QE report"))
    qe_report_signature = certification.take(64, "QE report signature")
    auth_size = certification.uint(2, "QE authentication data length")
    if auth_size != QE_AUTH_BYTES:
        raise certification.error(f"{auth_size} bytes of QE authentication data, expected {QE_AUTH_BYTES}")
    auth_data = certification.take(auth_size, "QE authentication data")
    chain = _certification_data(certification, _PCK_CHAIN, "PCK certification data")
    return Quote(
        version=version,
        qe_vendor_id=vendor_id,
        user_data=user_data,
        td=td,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=auth_data,
        pck_chain=chain.take(chain.remaining, "PCK certificate chain"),
        padding=rest,
    )


def _kind(detail: str) -> MalformedError:
    return MalformedError(Check.TDX_KIND, detail)


def _version(reader: Reader) -> int:
    version = reader.uint(2, "version")
    if version not in (4, 5):
        hint = " (an SGX quote)" if version == 3 else ""
        raise _kind(f"quote version {version}{hint}, expected 4 or 5")
    key_type = reader.uint(2, "attestation key type")
    if key_type != ECDSA_P256:
        raise _kind(f"attestation key type {key_type}, expected {ECDSA_P256} (ECDSA P-256)")
    tee = reader.uint(4, "TEE type")
    if tee != TEE_TDX:
        hint = " (SGX)" if tee == TEE_SGX else ""
        raise _kind(f"TEE type {tee:#x}{hint}, expected {TEE_TDX:#x} (TDX)")
    return version


def _body_type(reader: Reader) -> int:
    """Version 5 says which body follows, and its size, which must be the one of that type."""
    kind, size = reader.uint(2, "body type"), reader.uint(4, "body size")
    if kind not in BODY_BYTES:
        hint = " (an SGX enclave)" if kind == 1 else ""
        raise _kind(f"body type {kind}{hint}, expected one of {sorted(BODY_BYTES)}")
    if size != BODY_BYTES[kind]:
        raise reader.error(f"body type {kind} has {BODY_BYTES[kind]} bytes, the quote says {size}")
    return kind


def _certification_data(reader: Reader, expected: int, name: str) -> Reader:
    """One certification data structure, which must reach to the end of what holds it."""
    kind = reader.uint(2, f"{name} type")
    if kind != expected:
        raise _kind(f"{name} of type {kind}, expected {expected}")
    inner = reader.nested(reader.uint(4, f"{name} length"), name)
    reader.end()
    return inner


def _td_report(reader: Reader, body_type: int) -> TdReport:
    fields = dict(zip(_TD10_FIELDS, _TD10.unpack(reader.take(_TD10.size, "TD 1.0")), strict=True))
    report = TdReport(
        body_type=body_type,
        **fields,
        tee_tcb_svn2=reader.take(16, "TEE_TCB_SVN2") if body_type != TD10 else None,
        mr_service_td=reader.take(48, "MRSERVICETD") if body_type != TD10 else None,
        history=_history(reader) if body_type == TD15EX else None,
    )
    reader.end()
    return report


def _history(reader: Reader) -> ServiceTdHistory:
    return ServiceTdHistory(
        vmid=reader.uint(1, "VMID"),
        td_id=reader.take(32, "TD id"),
        dev_info=reader.take(48, "device info"),
        init_service_td_hash=reader.take(48, "initial service TD hash"),
        init_service_td_attributes=reader.take(8, "initial service TD attributes"),
        init_cpu_svn=reader.take(16, "initial CPU SVN"),
        init_tee_tcb_svn=reader.take(16, "initial TEE TCB SVN"),
        init_tee_fmspc=reader.take(12, "initial FMSPC"),
        current_service_td_hash=reader.take(48, "current service TD hash"),
        current_service_td_attributes=reader.take(8, "current service TD attributes"),
    )


def _qe_report(raw: bytes) -> QeReport:
    """An SGX report body (Intel SDM, REPORT structure); reserved bytes are skipped, the signature covers them."""
    return QeReport(
        raw=raw,
        cpu_svn=raw[0:16],
        misc_select=raw[16:20],
        attributes=raw[48:64],
        mr_enclave=raw[64:96],
        mr_signer=raw[128:160],
        isv_prod_id=int.from_bytes(raw[256:258], "little"),
        isv_svn=int.from_bytes(raw[258:260], "little"),
        report_data=raw[320:384],
    )
