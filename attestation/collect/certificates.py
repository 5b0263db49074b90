"""The table of certificates that an SEV-SNP host may hand to its guest beside a report (GHCB specification, §4.1.8.1).

    each entry    GUID 16 ‖ offset u32 ‖ length u32; the last is zeros; offsets count from the table's start

Untrusted, and often empty or stale: whoever judges the report holds the certificate against it.
"""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_ENTRIES = 64
_ENTRY, _GUID = 24, 16


class Certificate(StrEnum):
    """What an entry is, by its GUID."""

    ARK = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
    ASK = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
    VCEK = "63da758d-e664-4564-adc5-f4b93be8accd"
    VLEK = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
    CRL = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"


def parse_certificates(table: bytes) -> dict[Certificate, bytes]:
    """The entries that are known here, by kind. Others are the host's to add; an empty table has none."""
    found: dict[Certificate, bytes] = {}
    reader = Reader(table, Check.SNP_VEK, "SNP certificate table")
    for _ in range(MAX_ENTRIES):
        if not reader.remaining:
            return found
        guid = reader.take(_GUID, "GUID")
        offset, length = reader.uint(4, "offset"), reader.uint(4, "length")
        if not any(guid):
            return found
        if offset < _ENTRY or offset + length > len(table):
            raise reader.error(f"an entry of {length} bytes at {offset} lies outside of its {len(table)}")
        if (kind := _kind(guid)) is not None:
            if kind in found:
                raise reader.error(f"two certificates of kind {kind.name}")
            found[kind] = table[offset : offset + length]
    raise MalformedError(Check.SNP_VEK, f"SNP certificate table: more than {MAX_ENTRIES} entries")


def _kind(guid: bytes) -> Certificate | None:
    """Hosts write GUIDs in either byte order."""
    names = {str(UUID(bytes=guid)), str(UUID(bytes_le=guid))}
    return next((kind for kind in Certificate if kind in names), None)
