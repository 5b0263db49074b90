"""The SEV-SNP attestation report: what its bytes say. Judges nothing; `verify` does.

Layout: AMD 56860 "SEV Secure Nested Paging Firmware ABI Specification", MSG_REPORT_RSP, ATTESTATION_REPORT.
Versions 2, 3 and 5 differ in their reserved areas alone; 4 is laid out like 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

REPORT_BYTES = 1184
SIGNED_BYTES = 0x2A0  # everything before the signature
_VERSIONS = (2, 3, 4, 5)
_ECDSA_P384_SHA384 = 1
_SCALAR_BYTES, _FIELD_BYTES = 48, 72  # a P-384 scalar, and the room AMD's signature structure leaves for it


class Product(StrEnum):
    """The product line: it decides the root key, the TCB layout and the length of the chip id."""

    MILAN = "Milan"
    GENOA = "Genoa"  # with Bergamo and Siena, which chain to the same root
    TURIN = "Turin"


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
class Tcb:
    """Security patch levels of the parts that make up the trusted computing base. `fmc` exists on Turin only."""

    fmc: int = 0
    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0

    def parts(self) -> tuple[tuple[str, int], ...]:
        names = ("fmc", "bootloader", "tee", "snp", "microcode")
        return tuple((name, getattr(self, name)) for name in names)

    def at_least(self, floor: Tcb) -> bool:
        return all(mine >= other for (_, mine), (_, other) in zip(self.parts(), floor.parts(), strict=True))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parts())


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


def parse_report(data: bytes) -> Report:
    """Read the 1184 bytes of a report; reserved areas must be zero, as the specification has them."""
    if len(data) != REPORT_BYTES:
        raise MalformedError(
            Check.SNP_REPORT, f"SNP report: must have {REPORT_BYTES} bytes, found {len(data)}"
        )
    reader = Reader(data, Check.SNP_REPORT, "SNP report")
    version = reader.uint(4, "version")
    if version not in _VERSIONS:
        raise reader.error(f"version must be one of {_VERSIONS}, found {version}")
    return _parse_fields(reader, version)


def _parse_fields(reader: Reader, version: int) -> Report:
    """Everything after the version, in the order of the bytes (keyword arguments are evaluated in order)."""
    return Report(
        version=version,
        guest_svn=reader.uint(4, "guest_svn"),
        policy=_parse_policy(reader),
        family_id=reader.take(16, "family_id"),
        image_id=reader.take(16, "image_id"),
        vmpl=_parse_vmpl_and_algorithm(reader),
        current_tcb=reader.take(8, "current_tcb"),
        platform=_parse_platform(reader.uint(8, "platform_info")),
        signer=_parse_signer_info(reader),
        report_data=reader.take(64, "report_data"),
        measurement=reader.take(48, "measurement"),
        host_data=reader.take(32, "host_data"),
        id_key_digest=reader.take(48, "id_key_digest"),
        author_key_digest=reader.take(48, "author_key_digest"),
        report_id=reader.take(32, "report_id"),
        report_id_ma=reader.take(32, "report_id_ma"),
        reported_tcb=reader.take(8, "reported_tcb"),
        cpuid=_parse_cpuid(reader, version),
        chip_id=reader.take(64, "chip_id"),
        committed_tcb=reader.take(8, "committed_tcb"),
        current_firmware=_parse_firmware(reader, "current"),
        committed_firmware=_parse_firmware(reader, "committed"),
        launch_tcb=reader.take(8, "launch_tcb"),
        launch_mitigations=_parse_mitigations(reader, version, "launch_mit_vector"),
        current_mitigations=_parse_mitigations(reader, version, "current_mit_vector"),
        signature=_parse_signature(reader),
    )


def _parse_policy(reader: Reader) -> GuestPolicy:
    bits = reader.uint(8, "policy")
    if not bits >> 17 & 1:
        raise reader.error(f"policy bit 17 must be one, found {bits:#x}")
    if bits >> 26:
        raise reader.error(f"policy bits 26 and up must be zero, found {bits:#x}")
    flag = _flags(bits)
    return GuestPolicy(
        abi_major=bits >> 8 & 0xFF,
        abi_minor=bits & 0xFF,
        smt=flag[16],
        migration_agent=flag[18],
        debug=flag[19],
        single_socket=flag[20],
        cxl=flag[21],
        memory_aes256=flag[22],
        rapl_disabled=flag[23],
        ciphertext_hiding=flag[24],
        page_swap_disabled=flag[25],
    )


def _parse_platform(bits: int) -> PlatformInfo:
    flag = _flags(bits)
    return PlatformInfo(
        smt=flag[0],
        tsme=flag[1],
        ecc=flag[2],
        rapl_disabled=flag[3],
        ciphertext_hiding=flag[4],
        alias_check_complete=flag[5],
        iommu_write_safe=flag[6],
        tio=flag[7],
        unknown=bits >> 8 << 8,
    )


def _flags(bits: int) -> list[bool]:
    return [bool(bits >> i & 1) for i in range(26)]


def _parse_vmpl_and_algorithm(reader: Reader) -> int:
    vmpl = reader.uint(4, "vmpl")
    if vmpl > 3 and vmpl != 0xFFFFFFFF:  # the host's own requests carry 0xffffffff
        raise reader.error(f"vmpl must be 0 to 3 or 0xffffffff, found {vmpl}")
    algorithm = reader.uint(4, "signature_algo")
    if algorithm != _ECDSA_P384_SHA384:
        raise reader.error(f"signature_algo must be 1 (ECDSA P-384 with SHA-384), found {algorithm}")
    return vmpl


def _parse_signer_info(reader: Reader) -> SignerInfo:
    bits = reader.uint(4, "signer_info")
    key = bits >> 2 & 7
    if bits >> 5 or key not in _SIGNING_KEYS:
        raise reader.error(f"signer_info has reserved bits or a reserved signing key, found {bits:#x}")
    reader.zeros(4, "reserved after signer_info")
    return SignerInfo(
        signing_key=_SIGNING_KEYS[key], author_key_enabled=bool(bits & 1), mask_chip_key=bool(bits & 2)
    )


def _parse_cpuid(reader: Reader, version: int) -> tuple[int, int, int] | None:
    if version == 2:
        reader.zeros(24, "reserved after reported_tcb")
        return None
    family, model, stepping = reader.take(3, "cpuid")
    reader.zeros(21, "reserved after cpuid")
    return family, model, stepping


def _parse_firmware(reader: Reader, name: str) -> FirmwareVersion:
    build, minor, major = reader.take(3, f"{name} firmware version")
    reader.zeros(1, f"reserved after {name} firmware version")
    return FirmwareVersion(major=major, minor=minor, build=build)


def _parse_mitigations(reader: Reader, version: int, name: str) -> int | None:
    if version < 4:
        reader.zeros(8, f"reserved before the signature ({name} in later versions)")
        return None
    return reader.uint(8, name)


def _parse_signature(reader: Reader) -> tuple[int, int]:
    reader.zeros(SIGNED_BYTES - reader.offset, "reserved before the signature")
    r = reader.uint(_SCALAR_BYTES, "signature r")
    reader.zeros(_FIELD_BYTES - _SCALAR_BYTES, "upper bytes of signature r")
    s = reader.uint(_SCALAR_BYTES, "signature s")
    reader.zeros(_FIELD_BYTES - _SCALAR_BYTES, "upper bytes of signature s")
    reader.zeros(reader.remaining, "rest of the signature")
    reader.end()
    return r, s


def product_of_cpuid(cpuid: tuple[int, int, int]) -> Product | None:
    """The line a family and model belong to, None when this code does not know it. Never guessed."""
    match cpuid:
        case (0x19, model, _) if model <= 0x0F:
            return Product.MILAN
        case (0x19, model, _) if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return Product.GENOA
        case (0x1A, model, _) if model <= 0x1F:
            return Product.TURIN
    return None


def decode_tcb(raw: bytes, product: Product, name: str) -> Tcb:
    """The eight bytes of a TCB_VERSION, whose layout changed with Turin. Reserved bytes must be zero."""
    if product is Product.TURIN:
        fmc, bootloader, tee, snp, *reserved, microcode = raw
    else:
        bootloader, tee, *reserved, snp, microcode = raw
        fmc = 0
    if any(reserved):
        detail = f"SNP report: {name} {raw.hex()} sets bytes that are reserved on {product}"
        raise MalformedError(Check.SNP_REPORT, detail)
    return Tcb(fmc=fmc, bootloader=bootloader, tee=tee, snp=snp, microcode=microcode)
