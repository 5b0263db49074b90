"""Evidence as other providers publish it: what one machine's document holds, and what must hold for it. Not judged yet.

Every format comes down to the same few things: what a CPU signed, what its report data commits to, the nonce that it
was made for, the TLS key that a connection must end at, and whatever came along. `judge_foreign` decides.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.errors import MalformedError
from attestation.evidence import SnpEvidence, TdxEvidence

MAX_DOCUMENT_BYTES = 8 * 1024 * 1024
ONE_MACHINE = (
    "GPUs and CPU in one machine: both answered for one nonce, and either may have come from elsewhere"
)


class Format(StrEnum):
    """The formats that are judged."""

    TINFOIL_V2 = "tinfoil-v2"
    TINFOIL_V3 = "tinfoil-v3"
    DSTACK = "dstack"
    NITRIDING = "nitriding"
    RA_TLS = "ra-tls"


TITLES: Mapping[Format, str] = {
    Format.TINFOIL_V2: "Tinfoil document, version 2",
    Format.TINFOIL_V3: "Tinfoil document, version 3",
    Format.DSTACK: "dstack attestation report",
    Format.NITRIDING: "Nitro document of a nitriding gateway",
    Format.RA_TLS: "RA-TLS certificate",
}


@dataclass(frozen=True, slots=True)
class NitroEvidence:
    """An AWS Nitro document, as the enclave gave it out."""

    document: bytes


@dataclass(frozen=True, slots=True)
class TlsKey:
    """What the TLS connection must end at: the SHA-256 of a public key, or of a whole certificate."""

    sha256: bytes
    certificate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreign:
    """One machine's evidence in somebody's format, read and not believed."""

    format: Format
    cpu: TdxEvidence | SnpEvidence | NitroEvidence
    # What the hardware must have signed: one of these. None: the format commits to its report data as it is.
    report_data: tuple[bytes, ...] | None = None
    nonce: bytes | None = None  # what the document says that it was made for
    tls: TlsKey | None = None
    keys: Mapping[str, bytes] = field(default_factory=dict)  # the others that it vouches for
    gpus: bytes = b""  # NVIDIA's list
    events: bytes | None = None  # dstack's log
    compose: bytes | None = None  # the text that the log's compose-hash is of
    amd: AmdCollateral | None = None  # as it came along
    uncovered: tuple[str, ...] = ()  # what this format leaves unproven, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the asker knows: its nonce, and the certificate at the end of its connection. None in a file."""

    nonce: bytes | None = None
    certificate: bytes | None = None  # DER


def malformed(detail: str) -> MalformedError:
    return MalformedError(Check.FOREIGN_FORMAT, detail)


def read_object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise malformed(f"{what} must be an object")
    return value


def read_base64(value: Any, what: str) -> bytes:
    """Strict: each value in its one spelling."""
    try:
        data = b64decode(value, validate=True)
    except (TypeError, ValueError) as exc:
        raise malformed(f"{what} must be base64") from exc
    if b64encode(data).decode() != value:
        raise malformed(f"{what} must be base64, each value in its one spelling")
    return data


def read_hex(value: Any, what: str, size: int | None = None) -> bytes:
    """Of this many bytes, where that is fixed."""
    try:
        data = bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError) as exc:
        raise malformed(f"{what} must be hex") from exc
    if size is not None and len(data) != size:
        raise malformed(f"{what} must have {size} bytes, found {len(data)}")
    return data
