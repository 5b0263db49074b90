"""Azure's evidence as guests hand it out: a TPM quote, the HCL report, and what the hardware's vendor signed.

JSON in the two forms in use: byte strings as lists of numbers under the names `quote` and `report`, or in hex and
base64url under `tpm_quote` and `hcl_report` with a `version`. Untrusted: parsing judges nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.vtpm.quote import PCR_COUNT

MAX_EVIDENCE_BYTES = 2 * 1024 * 1024
_NAMES = {"version", "quote", "tpm_quote", "report", "hcl_report", "vcek", "td_quote", "event_log"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureEvidence:
    """One answer of an Azure confidential VM."""

    quote: bytes  # TPMS_ATTEST
    signature: bytes  # RSASSA-PKCS1-v1_5 with SHA-256, by the attestation key
    pcrs: tuple[bytes, ...]  # all 24 of the SHA-256 bank
    hcl_report: bytes
    vcek: bytes = b""  # on SEV-SNP: PEM or DER, when the guest staples it
    td_quote: bytes = b""  # on TDX
    event_log: bytes = b""


def parse_evidence(data: bytes) -> AzureEvidence:
    """Evidence from its JSON."""
    fields = parse_json_object(data, Check.VTPM_FORMAT, "Azure evidence", limit=MAX_EVIDENCE_BYTES)
    if not set(fields) <= _NAMES:
        raise _error(f"unknown members {sorted(set(fields) - _NAMES)}")
    if type(fields.get("version", 1)) is not int:
        raise _error("version must be a number")
    quote = _either(fields, "quote", "tpm_quote")
    if not isinstance(quote, dict) or set(quote) != {"message", "signature", "pcrs"}:
        raise _error("the TPM quote must have exactly message, signature and pcrs")
    pcrs = quote["pcrs"]
    if not isinstance(pcrs, list) or len(pcrs) != PCR_COUNT:
        raise _error(f"pcrs must be a list of {PCR_COUNT}")
    values = tuple(_hex(value, f"PCR{i}") for i, value in enumerate(pcrs))
    if any(len(value) != 32 for value in values):
        raise _error("each PCR must have 32 bytes (SHA-256)")
    vcek = fields.get("vcek", "")
    if not isinstance(vcek, str) or not vcek.isascii():
        raise _error("vcek must be PEM text")
    return AzureEvidence(
        quote=_hex(quote["message"], "message"),
        signature=_hex(quote["signature"], "signature"),
        pcrs=values,
        hcl_report=_base64(_either(fields, "report", "hcl_report"), "HCL report"),
        vcek=vcek.encode(),
        td_quote=_base64(fields.get("td_quote", ""), "td_quote"),
        event_log=_base64(fields.get("event_log", ""), "event_log"),
    )


def dump_evidence(evidence: AzureEvidence) -> bytes:
    """The JSON that `parse_evidence` reads."""
    fields: dict[str, Any] = {
        "version": 1,
        "tpm_quote": {
            "message": evidence.quote.hex(),
            "signature": evidence.signature.hex(),
            "pcrs": [value.hex() for value in evidence.pcrs],
        },
        "hcl_report": b64url_encode(evidence.hcl_report),
    }
    if evidence.vcek:
        fields["vcek"] = evidence.vcek.decode("ascii")
    optional = {"td_quote": evidence.td_quote, "event_log": evidence.event_log}
    fields |= {name: b64url_encode(value) for name, value in optional.items() if value}
    return json.dumps(fields, separators=(",", ":")).encode()


def _either(fields: dict[str, Any], old: str, new: str) -> Any:
    if (old in fields) == (new in fields):
        raise _error(f"expected one of {old!r} and {new!r}")
    return fields[old if old in fields else new]


def _numbers(value: list[Any], what: str) -> bytes:
    if any(type(number) is not int or not 0 <= number < 256 for number in value):
        raise _error(f"{what}: a list of bytes has numbers from 0 to 255")
    return bytes(value)


def _hex(value: Any, what: str) -> bytes:
    if isinstance(value, list):
        return _numbers(value, what)
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as exc:
        raise _error(f"{what} must be hex or a list of numbers") from exc


def _base64(value: Any, what: str) -> bytes:
    if isinstance(value, list):
        return _numbers(value, what)
    if not isinstance(value, str):
        raise _error(f"{what} must be base64url or a list of numbers")
    return b64url_decode(value.rstrip("="), Check.VTPM_FORMAT, what)


def _error(detail: str) -> MalformedError:
    return MalformedError(Check.VTPM_FORMAT, f"Azure evidence: {detail}")
