"""AWS Nitro attestation documents: what the bytes say. Untrusted, judged by nobody yet.

    [18(] [ << {1: -35} >>, {}, << payload >>, signature ] [)]          COSE_Sign1, RFC 9052 §4.2

One encoding is accepted for what a document says, the preferred one of RFC 8949 §4.1: no duplicate keys, no
indefinite lengths, no long forms, nothing after the end. One exception, because Amazon's own documents have it:
the payload's outermost map may be of indefinite length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import cbor2

from attestation.checks import Check
from attestation.errors import MalformedError

MAX_DOCUMENT_BYTES = 16 * 1024  # the Nitro Secure Module's own answers are limited to 12 KiB
MAX_DEPTH = 4
# limits of "Verifying the root of trust", AWS Nitro Enclaves user guide
MAX_CERTIFICATE_BYTES = 1024
MAX_CABUNDLE = 8  # four are seen; the guide names no limit
MAX_PUBLIC_KEY_BYTES = 1024
MAX_USER_DATA_BYTES = 512
MAX_NONCE_BYTES = 512
PCR_COUNT, PCR_BYTES = 32, 48

_TAG_18 = b"\xd2"  # COSE_Sign1; documents come with and without it
_PROTECTED = bytes.fromhex("a1013822")  # {1: -35}: the algorithm is ES384, and there is nothing else to know
_SIGNATURE_BYTES = 96
_YEAR_3000_MS = 32503680000000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIELDS = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
_OPTIONAL = {"public_key": MAX_PUBLIC_KEY_BYTES, "user_data": MAX_USER_DATA_BYTES, "nonce": MAX_NONCE_BYTES}


class Missing(StrEnum):
    """Two ways in which an optional field has no value. A value of no bytes is a third thing: b""."""

    ABSENT = "absent"
    NULL = "null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document, with the exact bytes that its signature covers."""

    module_id: str
    timestamp: datetime
    pcrs: Mapping[int, bytes]
    certificate: bytes
    cabundle: tuple[bytes, ...]  # root first
    public_key: bytes | Missing
    user_data: bytes | Missing
    nonce: bytes | Missing
    signed: bytes  # the Sig_structure of RFC 9052 §4.4
    signature: bytes  # r and s, 48 bytes each


def parse_document(data: bytes) -> Document:
    """A document from its bytes. Judges nothing: neither signature, nor chain, nor dates."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _error(f"{len(data)} bytes, the limit is {MAX_DOCUMENT_BYTES}")
    message = _decode(data.removeprefix(_TAG_18), "COSE_Sign1")
    if not isinstance(message, list) or len(message) != 4:
        raise _error("expected COSE_Sign1, an array of four")
    protected, unprotected, payload, signature = message
    if protected != _PROTECTED or unprotected != {} or not isinstance(unprotected, dict):
        raise _error("the headers must be {1: -35} (ES384), protected, and nothing unprotected")
    if (
        not isinstance(payload, bytes)
        or not isinstance(signature, bytes)
        or len(signature) != _SIGNATURE_BYTES
    ):
        raise _error(f"payload and signature must be byte strings, the signature of {_SIGNATURE_BYTES} bytes")
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    return _document(_decode(payload, "payload", indefinite=True), signed, signature)


def _document(fields: Any, signed: bytes, signature: bytes) -> Document:
    if not isinstance(fields, dict) or not _FIELDS <= set(fields) <= _FIELDS | set(_OPTIONAL):
        raise _error(
            f"the payload must be a map with {sorted(_FIELDS)} and at most {sorted(_OPTIONAL)} besides"
        )
    if fields["digest"] != "SHA384":
        raise _error("digest must be 'SHA384'")
    module_id = fields["module_id"]
    if not isinstance(module_id, str) or not module_id:
        raise _error("module_id must be a text of at least one character")
    bundle = fields["cabundle"]
    if not isinstance(bundle, list) or not 1 <= len(bundle) <= MAX_CABUNDLE:
        raise _error(f"cabundle must hold 1 to {MAX_CABUNDLE} certificates")
    optional = {name: _optional(fields, name, limit) for name, limit in _OPTIONAL.items()}
    return Document(
        module_id=module_id,
        timestamp=_timestamp(fields["timestamp"]),
        pcrs=_pcrs(fields["pcrs"]),
        certificate=_bytes(fields["certificate"], "certificate", 1, MAX_CERTIFICATE_BYTES),
        cabundle=tuple(
            _bytes(der, f"cabundle[{i}]", 1, MAX_CERTIFICATE_BYTES) for i, der in enumerate(bundle)
        ),
        signed=signed,
        signature=signature,
        **optional,
    )


def _pcrs(value: Any) -> Mapping[int, bytes]:
    if not isinstance(value, dict) or not 1 <= len(value) <= PCR_COUNT:
        raise _error(f"pcrs must be a map of 1 to {PCR_COUNT} entries")
    for index, digest in value.items():
        if type(index) is not int or not 0 <= index < PCR_COUNT:
            raise _error(f"PCR indexes must be integers from 0 to {PCR_COUNT - 1}")
        _bytes(digest, f"PCR{index}", PCR_BYTES, PCR_BYTES)
    return dict(sorted(value.items()))


def _timestamp(value: Any) -> datetime:
    if type(value) is not int or not 0 < value < _YEAR_3000_MS:
        raise _error("timestamp must be milliseconds since 1970")
    return _EPOCH + timedelta(milliseconds=value)


def _optional(fields: dict[str, Any], name: str, limit: int) -> bytes | Missing:
    if name not in fields:
        return Missing.ABSENT
    return Missing.NULL if fields[name] is None else _bytes(fields[name], name, 0, limit)


def _bytes(value: Any, name: str, low: int, high: int) -> bytes:
    if not isinstance(value, bytes) or not low <= len(value) <= high:
        raise _error(f"{name} must be a byte string of {low} to {high} bytes")
    return value


def _decode(data: bytes, what: str, *, indefinite: bool = False) -> Any:
    """The value whose one encoding is `data`: encoding it again must give the same bytes."""
    try:
        value = cbor2.loads(data, max_depth=MAX_DEPTH, allow_duplicate_keys=False)
        encoded = cbor2.dumps(value)
    except Exception as exc:  # cbor2 lets errors of the types it builds through, and RecursionError
        raise _error(f"{what}: not acceptable CBOR ({exc})") from exc
    forms = [encoded]
    if indefinite and 0xA0 <= encoded[0] < 0xB8:  # a map whose head is one byte: 0xbf, and a break at the end
        forms.append(b"\xbf" + encoded[1:] + b"\xff")
    if data not in forms:
        raise _error(f"{what}: not in preferred encoding (duplicate key, indefinite length, trailing bytes?)")
    return value


def _error(detail: str) -> MalformedError:
    return MalformedError(Check.NITRO_FORMAT, f"Nitro document: {detail}")
