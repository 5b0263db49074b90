"""The SEV-SNP attestation report: what its bytes say. Judges nothing; `verify` does.

Layout: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification", MSG_REPORT_RSP, ATTESTATION_REPORT.
Versions 2, 3 and 5 differ in their reserved areas alone; 4 is laid out like 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from struct import Struct
from typing import NamedTuple

from attestation.checks import Check
from attestation.errors import MalformedError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0  # everything before the signature
_VERSIONS = (2, 3, 4, 5)
_ECDSA_P384_SHA384 = 1


class SigningKey(StrEnum):
    """Who signed: the chip's own key, or one that AMD gave to a cloud and the cloud loaded."""

    VCEK = "VCEK"
    VLEK = "VLEK"


_SIGNING_KEYS = {0: SigningKey.VCEK, 1: SigningKey.VLEK, 7: None}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """What the guest's owner demanded at launch; the firmware holds to it for the guest's life (GUEST_POLICY)."""

    abi_major: int
    abi_minor: int
    smt: bool
    migration_agent: bool
    debug: bool
    single_socket: bool
    cxl: bool
    memory_aes256: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    page_swap_disabled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfo:
    """How the machine is set up now (PLATFORM_INFO). `unknown` holds the bits this code has no name for."""

    smt: bool
    tsme: bool
    ecc: bool
    rapl_disabled: bool
    ciphertext_hiding: bool
    alias_check_complete: bool
    iommu_write_safe: bool
    tio: bool
    unknown: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerInfo:
    signing_key: SigningKey | None  # None: the firmware was told not to sign
    author_key_enabled: bool
    mask_chip_key: bool


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class FirmwareVersion:
    major: int = 0
    minor: int = 0
    build: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One report, field by field. TCBs stay raw: their layout depends on the product (`decode_tcb`)."""

    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    current_tcb: bytes
    platform: PlatformInfo
    signer: SignerInfo
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None  # family, model, stepping; None in version 2
    chip_id: bytes
    committed_tcb: bytes
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    launch_tcb: bytes
    launch_mitigations: int | None  # None before version 4
    current_mitigations: int | None
    signature: tuple[int, int]  # r and s


class _Raw(NamedTuple):
    """ATTESTATION_REPORT, every byte of it, in the order of `_LAYOUT`."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    algorithm: int
    current_tcb: bytes
    platform: int
    signer: int
    reserved_signer: bytes
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: bytes
    reserved_cpuid: bytes
    chip_id: bytes
    committed_tcb: bytes
    current: bytes
    reserved_current: bytes
    committed: bytes
    reserved_committed: bytes
    launch_tcb: bytes
    launch_mitigations: int
    current_mitigations: int
    reserved_end: bytes
    r: bytes
    reserved_r: bytes
    s: bytes
    reserved_s: bytes
    reserved_signature: bytes


_RESERVED = tuple(name for name in _Raw._fields if name.startswith("reserved"))
_LAYOUT = Struct(
    "<IIQ16s16sII"  # 000h version to signature_algo
    "8sQI4s"  # 038h current_tcb to the reserved area after signer_info
    "64s48s32s48s48s32s32s"  # 050h report_data to report_id_ma
    "8s3s21s64s"  # 180h reported_tcb to chip_id
    "8s3ss3ss8s"  # 1e0h committed_tcb to launch_tcb
    "QQ152s"  # 1f8h mitigation vectors to the end of what is signed
    "48s24s48s24s368s"  # 2a0h r and s, each with room above, and the rest of the signature
)


def parse_report(data: bytes) -> Report:
    """Read the 1184 bytes of a report; reserved areas must be zero, as the specification has them."""
    if len(data) != REPORT_BYTES:
        raise _malformed(f"must have {REPORT_BYTES} bytes, found {len(data)}")
    raw = _Raw._make(_LAYOUT.unpack(data))
    _check_form(raw)
    return Report(
        version=raw.version,
        guest_svn=raw.guest_svn,
        policy=_parse_policy(raw.policy),
        family_id=raw.family_id,
        image_id=raw.image_id,
        vmpl=raw.vmpl,
        current_tcb=raw.current_tcb,
        platform=_parse_platform(raw.platform),
        signer=_parse_signer_info(raw.signer),
        report_data=raw.report_data,
        measurement=raw.measurement,
        host_data=raw.host_data,
        id_key_digest=raw.id_key_digest,
        author_key_digest=raw.author_key_digest,
        report_id=raw.report_id,
        report_id_ma=raw.report_id_ma,
        reported_tcb=raw.reported_tcb,
        cpuid=(raw.cpuid[0], raw.cpuid[1], raw.cpuid[2]) if raw.version >= 3 else None,
        chip_id=raw.chip_id,
        committed_tcb=raw.committed_tcb,
        current_firmware=_parse_firmware(raw.current),
        committed_firmware=_parse_firmware(raw.committed),
        launch_tcb=raw.launch_tcb,
        launch_mitigations=raw.launch_mitigations if raw.version >= 4 else None,
        current_mitigations=raw.current_mitigations if raw.version >= 4 else None,
        signature=(int.from_bytes(raw.r, "little"), int.from_bytes(raw.s, "little")),
    )


def _check_form(raw: _Raw) -> None:
    if raw.version == 1:
        raise _malformed("version 1, of firmware before SEV-SNP's version 2 reports, is not judged")
    if raw.version not in _VERSIONS:
        raise _malformed(f"version must be one of {_VERSIONS}, found {raw.version}")
    if raw.vmpl > 3 and raw.vmpl != 0xFFFFFFFF:  # the host's own requests carry 0xffffffff
        raise _malformed(f"vmpl must be 0 to 3 or 0xffffffff, found {raw.vmpl:#x}")
    if raw.algorithm != _ECDSA_P384_SHA384:
        raise _malformed(f"signature_algo must be 1 (ECDSA P-384 with SHA-384), found {raw.algorithm}")
    if raw.version < 3 and any(raw.cpuid):
        raise _malformed(f"CPUID must be zero in version {raw.version}, found {raw.cpuid.hex()}")
    if raw.version < 4 and (raw.launch_mitigations or raw.current_mitigations):
        raise _malformed(f"mitigation vectors must be zero in version {raw.version}")
    for name in _RESERVED:
        if getattr(raw, name).strip(b"\0"):
            raise _malformed(f"{name.replace('_', ' after ')} must be zero")


def _parse_policy(bits: int) -> GuestPolicy:
    if not bits >> 17 & 1:
        raise _malformed(f"policy bit 17 must be one, found {bits:#x}")
    if bits >> 26:
        raise _malformed(f"policy bits 26 and up must be zero, found {bits:#x}")
    return GuestPolicy(
        abi_major=bits >> 8 & 0xFF,
        abi_minor=bits & 0xFF,
        smt=bool(bits & 1 << 16),
        migration_agent=bool(bits & 1 << 18),
        debug=bool(bits & 1 << 19),
        single_socket=bool(bits & 1 << 20),
        cxl=bool(bits & 1 << 21),
        memory_aes256=bool(bits & 1 << 22),
        rapl_disabled=bool(bits & 1 << 23),
        ciphertext_hiding=bool(bits & 1 << 24),
        page_swap_disabled=bool(bits & 1 << 25),
    )


def _parse_platform(bits: int) -> PlatformInfo:
    return PlatformInfo(
        smt=bool(bits & 1 << 0),
        tsme=bool(bits & 1 << 1),
        ecc=bool(bits & 1 << 2),
        rapl_disabled=bool(bits & 1 << 3),
        ciphertext_hiding=bool(bits & 1 << 4),
        alias_check_complete=bool(bits & 1 << 5),
        iommu_write_safe=bool(bits & 1 << 6),
        tio=bool(bits & 1 << 7),
        unknown=bits >> 8 << 8,
    )


def _parse_signer_info(bits: int) -> SignerInfo:
    key = bits >> 2 & 7
    if bits >> 5 or key not in _SIGNING_KEYS:
        raise _malformed(f"signer_info has reserved bits or a reserved signing key, found {bits:#x}")
    return SignerInfo(
        signing_key=_SIGNING_KEYS[key], author_key_enabled=bool(bits & 1), mask_chip_key=bool(bits & 2)
    )


def _parse_firmware(raw: bytes) -> FirmwareVersion:
    build, minor, major = raw
    return FirmwareVersion(major=major, minor=minor, build=build)


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.SNP_REPORT, f"SNP report: {detail}")
