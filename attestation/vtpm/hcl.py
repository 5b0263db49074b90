"""Azure's HCL report: a hardware report, and the runtime data whose SHA-256 that report carries.

    header         "HCLA" ‖ version ‖ size of what counts ‖ request type ‖ status ‖ zeros 12          32 bytes
    hardware       SEV-SNP report, or TDREPORT and zeros                                            1184 bytes
    runtime data   size ‖ version 1 ‖ report type ‖ hash type ‖ length ‖ JSON, then zeros

"Azure confidential VM guest attestation", Microsoft. The vTPM keeps it at NV index 0x01400001. Untrusted: the JSON
is bound by `verify`, the header by nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa

from attestation._b64 import b64url_decode
from attestation._json import parse_json_object
from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_HCL_BYTES = 16 * 1024
MAX_RUNTIME_DATA_BYTES = 8 * 1024
_HEADER, _HARDWARE, _RUNTIME_HEADER = 32, 1184, 20
_SHA256 = 1
_AK = "HCLAkPub"
_RSA_BITS, _EXPONENT = range(2048, 4097), 65537


class ReportType(IntEnum):
    """Which hardware signed. A software-only VM (1, VBS) is not among them."""

    SNP = 2
    TDX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfiguration:
    """What the paravisor says of the VM. Members that Microsoft left out are None."""

    secure_boot: bool | None
    console_enabled: bool | None
    tpm_enabled: bool | None
    tpm_persisted: bool | None
    root_cert_thumbprint: str | None
    vm_unique_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """The JSON, and what of it is used. `raw` is what the hardware report's REPORT_DATA is a digest of."""

    raw: bytes
    attestation_key: rsa.RSAPublicKey
    configuration: VmConfiguration
    user_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """One HCL report, parsed."""

    report_type: ReportType
    hardware_report: bytes
    runtime_data: RuntimeData


def parse_hcl_report(data: bytes) -> HclReport:
    """An HCL report from its bytes, with or without the zeros that fill the NV index. Judges nothing."""
    if len(data) > MAX_HCL_BYTES:
        raise _error(f"{len(data)} bytes, the limit is {MAX_HCL_BYTES}")
    reader = Reader(data, Check.VTPM_FORMAT, "HCL report")
    reader.expect(b"HCLA", "signature")
    version, size = reader.uint(4, "version"), reader.uint(4, "size")
    if version not in (1, 2):
        raise reader.error(f"version {version}, expected 1 or 2")
    reader.take(4, "request type")
    reader.zeros(4, "status")
    reader.zeros(12, "reserved")
    hardware = reader.take(_HARDWARE, "hardware report")
    block, format_version = reader.uint(4, "runtime data size"), reader.uint(4, "runtime data version")
    report_type, hash_type = reader.uint(4, "report type"), reader.uint(4, "hash type")
    raw = reader.take(reader.uint(4, "runtime data length"), "runtime data")
    reader.end(padding=True)
    if report_type not in list(ReportType):
        raise _error(f"report type {report_type} is neither SEV-SNP (2) nor TDX (4)")
    if (format_version, hash_type) != (1, _SHA256):
        raise _error(
            f"runtime data of version {format_version}, hash type {hash_type}; expected 1 and 1 (SHA-256)"
        )
    if block != _RUNTIME_HEADER + len(raw) or size != _HEADER + _HARDWARE + block:
        raise _error(f"sizes {size} and {block} do not fit runtime data of {len(raw)} bytes")
    return HclReport(
        report_type=ReportType(report_type), hardware_report=hardware, runtime_data=parse_runtime_data(raw)
    )


def parse_runtime_data(raw: bytes) -> RuntimeData:
    """The runtime data's JSON. Members beyond those used here are Microsoft's to add."""
    fields = parse_json_object(raw, Check.VTPM_FORMAT, "HCL runtime data", limit=MAX_RUNTIME_DATA_BYTES)
    keys, configuration = fields.get("keys"), fields.get("vm-configuration")
    if not isinstance(keys, list) or not isinstance(configuration, dict):
        raise _error("runtime data needs a list 'keys' and an object 'vm-configuration'")
    attestation_keys = [key for key in keys if isinstance(key, dict) and key.get("kid") == _AK]
    if len(attestation_keys) != 1:
        raise _error(f"runtime data must have one key {_AK!r}, found {len(attestation_keys)}")
    try:
        user_data = bytes.fromhex(fields.get("user-data", ""))
    except (TypeError, ValueError) as exc:
        raise _error("runtime data: user-data must be hex") from exc
    return RuntimeData(
        raw=raw,
        attestation_key=_rsa_key(attestation_keys[0]),
        configuration=_configuration(configuration),
        user_data=user_data,
    )


def _rsa_key(jwk: dict[str, Any]) -> rsa.RSAPublicKey:
    n, e = _number(jwk, "n"), _number(jwk, "e")
    if jwk.get("kty") != "RSA" or e != _EXPONENT or n.bit_length() not in _RSA_BITS or n % 2 == 0:
        raise _error(f"{_AK} must be an RSA key of 2048 to 4096 bits with exponent {_EXPONENT}")
    return rsa.RSAPublicNumbers(e, n).public_key()


def _number(jwk: dict[str, Any], name: str) -> int:
    text = jwk.get(name)
    if not isinstance(text, str):
        raise _error(f"{_AK} has no {name!r}")
    return int.from_bytes(b64url_decode(text, Check.VTPM_FORMAT, f"{_AK} {name}"))


def _configuration(fields: dict[str, Any]) -> VmConfiguration:
    def member(name: str, kind: type) -> Any:
        value = fields.get(name)
        if value is not None and type(value) is not kind:
            raise _error(f"vm-configuration: {name} must be {kind.__name__}")
        return value

    return VmConfiguration(
        secure_boot=member("secure-boot", bool),
        console_enabled=member("console-enabled", bool),
        tpm_enabled=member("tpm-enabled", bool),
        tpm_persisted=member("tpm-persisted", bool),
        root_cert_thumbprint=member("root-cert-thumbprint", str),
        vm_unique_id=member("vmUniqueId", str),
    )


def _error(detail: str) -> MalformedError:
    return MalformedError(Check.VTPM_FORMAT, f"HCL report: {detail}")
