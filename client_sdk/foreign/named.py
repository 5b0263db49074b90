"""Evidence that is known here by its name alone: what it is, for a refusal that says so. Nothing is read of it.

dstack's versioned attestation, version 1, is MessagePack: {"version": 1, "platform": {"kind": …, "data": …}, "stack": …}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attestation.snp.report import REPORT_BYTES
from client_sdk.foreign.document import malformed

_PLATFORM = b"\xa8platform\x82\xa4kind"  # MessagePack: a text of 8 bytes, a map of two, a text of 4
_KINDS = {
    b"\xa7sev-snp": "of an AMD SEV-SNP machine",
    b"\xa3tdx": "of an Intel TDX machine",
    b"\xa7gcp-tdx": "of an Intel TDX machine with a TPM of Google's",
    b"\xadnitro-enclave": "of an AWS Nitro enclave",
    b"\xadaws-nitro-tpm": "of an AWS machine with a NitroTPM",
}
_SNP_ADVICE = "its SEV-SNP report alone can be judged, with `attested evidence snp`"


def versioned(data: bytes) -> str:
    """What a versioned attestation of dstack's is of, as far as its first bytes tell."""
    _, _, kind = data[:128].partition(_PLATFORM)
    name = next((name for start, name in _KINDS.items() if kind.startswith(start)), "")
    return f"dstack's versioned attestation {name}".rstrip()


def refuse_named(data: bytes) -> None:
    """Raise for bytes that are somebody's evidence, but none that is judged as a document."""
    if data[:1] == b"\x83" and _PLATFORM in data[:128]:
        raise malformed(f"{versioned(data)} is not judged here; {_SNP_ADVICE}")
    if is_snp_report(data):
        raise malformed("an SEV-SNP report without a document around it; `attested evidence snp` judges it")
    if data[:2] in {b"\x04\0", b"\x05\0"} and data[4:8] == b"\x81\0\0\0":
        raise malformed("a TDX quote without a document around it; `attested evidence tdx` judges it")


def refuse_named_object(document: Mapping[str, Any]) -> None:
    """The same for what dstack's guest agent answers: an attestation, or a quote with its log, of any platform."""
    attestation = document.get("attestation")
    if isinstance(attestation, str) and len(document) == 1:
        raise malformed(f"{versioned(_hex(attestation))} is not judged here; {_SNP_ADVICE}")
    if {"quote", "event_log", "report_data"} <= set(document):
        raise malformed(
            "a quote from dstack's guest agent, which says nothing of whose key it is; "
            "`attested evidence tdx` (or snp) judges the quote"
        )


def is_snp_report(data: bytes) -> bool:
    return len(data) == REPORT_BYTES and 1 <= int.from_bytes(data[:4], "little") <= 5


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        return b""
