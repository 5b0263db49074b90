"""A TPM 2.0 quote: the TPMS_ATTEST that an attestation key signed, big-endian throughout.

TPM 2.0 Library, part 2, §10.12.12 (TPMS_ATTEST), §10.12.1 (TPMS_QUOTE_INFO), §10.6.2 (TPMS_PCR_SELECTION).
"""

from __future__ import annotations

from dataclasses import dataclass

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_QUOTE_BYTES = 1024
PCR_COUNT = 24
_GENERATED = b"\xffTCG"  # only a TPM makes a restricted key sign what begins so
_ST_ATTEST_QUOTE = b"\x80\x18"
_ALG_SHA256 = b"\x00\x0b"
_ONE_SELECTION = b"\x00\x00\x00\x01"


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """What a TPM signed. One selection, of SHA-256 PCRs."""

    qualified_signer: bytes
    extra_data: bytes  # the caller's nonce
    clock: int  # milliseconds
    reset_count: int
    restart_count: int
    safe: bool  # the clock has not gone back
    firmware_version: int
    selected: tuple[int, ...]
    pcr_digest: bytes


def parse_quote(data: bytes) -> TpmQuote:
    """A quote from its bytes. Judges nothing."""
    if len(data) > MAX_QUOTE_BYTES:
        raise MalformedError(
            Check.VTPM_FORMAT, f"TPM quote: {len(data)} bytes, the limit is {MAX_QUOTE_BYTES}"
        )
    reader = Reader(data, Check.VTPM_FORMAT, "TPM quote")
    reader.expect(_GENERATED, "magic")
    reader.expect(_ST_ATTEST_QUOTE, "type")
    signer, extra_data = _sized(reader, "qualified signer"), _sized(reader, "extra data")
    clock, reset_count, restart_count = (
        _uint(reader, 8, "clock"),
        _uint(reader, 4, "resets"),
        _uint(reader, 4, "restarts"),
    )
    safe = _uint(reader, 1, "safe")
    if safe > 1:
        raise reader.error(f"safe must be 0 or 1, found {safe}")
    firmware_version = _uint(reader, 8, "firmware version")
    reader.expect(_ONE_SELECTION, "number of PCR selections")
    reader.expect(_ALG_SHA256, "PCR bank (SHA-256)")
    reader.expect(b"\x03", "size of the PCR selection")
    bits = reader.uint(3, "PCR selection")
    pcr_digest = _sized(reader, "PCR digest")
    reader.end()
    return TpmQuote(
        qualified_signer=signer,
        extra_data=extra_data,
        clock=clock,
        reset_count=reset_count,
        restart_count=restart_count,
        safe=bool(safe),
        firmware_version=firmware_version,
        selected=tuple(i for i in range(PCR_COUNT) if bits >> i & 1),
        pcr_digest=pcr_digest,
    )


def _uint(reader: Reader, size: int, name: str) -> int:
    return int.from_bytes(reader.take(size, name))


def _sized(reader: Reader, name: str) -> bytes:
    return reader.take(_uint(reader, 2, f"size of {name}"), name)
