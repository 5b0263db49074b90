"""Evidence that is known here by its name alone: what it is, for a refusal that says so. Nothing is read of it.

dstack's versioned attestation, version 1, is MessagePack: {"version": 1, "platform": {"kind": …, "data": …}, "stack": …}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attestation.errors import MalformedError
from attestation.snp.report import REPORT_BYTES
from client_sdk.foreign.document import malformed

_PLATFORM = b"\xa8platform\x82\xa4kind"  # MessagePack: a text of 8 bytes, a map of two, a text of 4
_KINDS = {  # and the command for what is inside
    b"\xa7sev-snp": ("of an AMD SEV-SNP machine", "snp"),
    b"\xa3tdx": ("of an Intel TDX machine", "tdx"),
    b"\xa7gcp-tdx": ("of an Intel TDX machine with a TPM of Google's", "tdx"),
    b"\xadnitro-enclave": ("of an AWS Nitro enclave", "nitro"),
    b"\xadaws-nitro-tpm": ("of an AWS machine with a NitroTPM", ""),
}


def versioned(data: bytes) -> str:
    """What a versioned attestation of dstack's is of, as far as its first bytes tell."""
    return f"dstack's versioned attestation {_kind(data)[0]}".rstrip()


def _kind(data: bytes) -> tuple[str, str]:
    _, _, kind = data[:128].partition(_PLATFORM)
    return next((named for start, named in _KINDS.items() if kind.startswith(start)), ("", ""))


def _not_judged(data: bytes) -> MalformedError:
    command = f"attested evidence {_kind(data)[1]}".rstrip()
    return malformed(
        f"{versioned(data)} is not judged here; what the machine itself signed is, by `{command}`"
    )


def refuse_named(data: bytes) -> None:
    """Raise for bytes that are somebody's evidence, but none that is judged as a document."""
    if data[:1] == b"\x83" and _PLATFORM in data[:128]:
        raise _not_judged(data)
    if is_snp_report(data):
        raise malformed("an SEV-SNP report without a document around it; `attested evidence snp` judges it")
    if data[:2] in {b"\x04\0", b"\x05\0"} and data[4:8] == b"\x81\0\0\0":
        raise malformed("a TDX quote without a document around it; `attested evidence tdx` judges it")


def refuse_named_object(document: Mapping[str, Any]) -> None:
    """The same for what dstack's guest agent answers: an attestation, or a quote with its log, of any platform."""
    attestation = document.get("attestation")
    if isinstance(attestation, str) and len(document) == 1:
        raise _not_judged(_hex(attestation))
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
