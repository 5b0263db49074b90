"""NVIDIA GPU and NVSwitch evidence: one SPDM 1.1 GET_MEASUREMENTS exchange with NVIDIA's opaque data. Judges nothing.

request    11 e0 01 ff | nonce 32 | slot 1                                        DSP0274 1.1.3 §10.11
response   11 60 .. .. | blocks 1 | record length 3 | record | nonce 32 | opaque length 2 | opaque | signature 96
record     ( index 1 | 01 | size 2 | type 1 | value size 2 | value 48 ) per block  §10.11.1
opaque     ( type 2 | length 2 | value ) …, the layout up to driver 590; from CUDA 13.5 on, as NVIDIA's C++ SDK reads it,
           "NVDAOD" | profile 2 | major 1 | minor 1 | 0000 | ( type 2 | value type 2 | length 2 | value ) …
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

NONCE_BYTES = 32
SIGNATURE_BYTES = 96
DIGEST_BYTES = 48
MAX_EVIDENCE_BYTES = 64 * 1024  # NVML's own buffer is 8 KiB
MAX_OPAQUE_VERSION = 2  # the newest that NVIDIA's SDK names
_BLOCK = struct.Struct(f"<BBHBH{DIGEST_BYTES}s")
_HEADER = b"NVDAOD"
_SVN_VALUE_TYPE = 0x87


class Arch(StrEnum):
    """The architectures whose evidence is understood."""

    HOPPER = "HOPPER"
    BLACKWELL = "BLACKWELL"
    LS10 = "LS10"  # NVSwitch


class Feature(StrEnum):
    """The confidential-computing feature the driver runs: multi or single GPU passthrough, protected PCIe."""

    MPT = "mpt"
    SPT = "spt"
    PPCIE = "ppcie"


class _Field(IntEnum):
    """Types of opaque data that are read; others are carried in the signed bytes only."""

    DRIVER = 3
    VBIOS = 6
    NVDEC0 = 11
    BOARD_ID = 14
    CHIP_SKU = 15
    PROJECT = 17
    PROJECT_SKU = 18
    FWID = 20
    PROTECTED_PCIE = 21
    PDI = 22
    SWITCH_GPU_PDIS = 26
    VERSION = 34
    CHIP = 35
    FEATURE = 36


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvidence:
    """What one GPU or NVSwitch says of itself; untrusted until `verify`."""

    signed: bytes  # request and response up to the signature
    signature: bytes  # r ‖ s
    nonce: bytes
    measurements: tuple[bytes, ...]  # block i + 1 stands at i, as RIMs count
    opaque_version: int
    switch: bool
    driver: str  # empty for a switch
    vbios: str
    fwid: bytes | None  # absent before driver 550, and for switches
    nvdec0: bool | None
    feature: Feature | None
    protected_pcie: bool | None
    project: str
    project_sku: str
    chip_sku: str
    chip: str  # Blackwell only
    board_id: int | None
    pdis: tuple[bytes, ...]  # a GPU's: the switches it is linked to; a switch's: its own
    gpu_pdis: tuple[bytes, ...]
    svns: Mapping[int, int]  # security version numbers by opaque type


def arch_of_chip(chip: str) -> Arch:
    """The architecture of a chip as NVIDIA's device certificates name it. Unknown chips are refused, never guessed."""
    if re.fullmatch(r"GH1\d\d", chip):
        return Arch.HOPPER
    if re.fullmatch(r"GB[12]\d\d", chip):
        return Arch.BLACKWELL
    if chip == "LS_10":
        return Arch.LS10
    raise MalformedError(
        Check.GPU_FORMAT, f"unknown architecture: chip {chip!r}; known are GH1xx, GB1xx, GB2xx, LS_10"
    )


def parse_evidence(data: bytes) -> GpuEvidence:
    """Read request ‖ response. Zero bytes may follow, as NVML's fixed buffer leaves them."""
    if len(data) > MAX_EVIDENCE_BYTES:
        raise MalformedError(
            Check.GPU_FORMAT, f"{len(data)} bytes of evidence, the limit is {MAX_EVIDENCE_BYTES}"
        )
    reader = Reader(data, Check.GPU_FORMAT, "GPU evidence")
    reader.expect(b"\x11\xe0\x01\xff", "the request for all measurements, signed (SPDM 1.1)")
    nonce = reader.take(NONCE_BYTES, "request nonce")
    if (slot := reader.uint(1, "certificate slot")) > 7:
        raise reader.error(f"certificate slot {slot}; there are 0 to 7")
    reader.expect(b"\x11\x60", "the response code (SPDM 1.1 MEASUREMENTS)")
    reader.take(2, "response parameters")
    blocks = reader.uint(1, "number of blocks")
    measurements = _parse_record(reader.take(reader.uint(3, "record length"), "measurement record"), blocks)
    reader.take(NONCE_BYTES, "response nonce")
    opaque = reader.take(reader.uint(2, "opaque length"), "opaque data")
    signed = data[: reader.offset]
    signature = reader.take(SIGNATURE_BYTES, "signature")
    reader.end(padding=True)
    version, fields, svns = _parse_opaque(opaque)
    return _evidence(signed, signature, nonce, measurements, version, fields, svns)


def _parse_record(record: bytes, blocks: int) -> tuple[bytes, ...]:
    if not blocks or len(record) != blocks * _BLOCK.size:
        raise MalformedError(
            Check.GPU_FORMAT,
            f"{blocks} blocks of {_BLOCK.size} bytes do not make a record of {len(record)} bytes",
        )
    values = []
    for position, (index, spec, size, _kind, length, value) in enumerate(_BLOCK.iter_unpack(record), 1):
        if (index, spec, size, length) != (position, 1, DIGEST_BYTES + 3, DIGEST_BYTES):
            raise MalformedError(
                Check.GPU_FORMAT,
                f"block {position} must have index {position} and a DMTF value of {DIGEST_BYTES} bytes, "
                f"found index {index}, specification {spec}, size {size}, value size {length}",
            )
        values.append(value)
    return tuple(values)


def _parse_opaque(opaque: bytes) -> tuple[int, dict[int, bytes], dict[int, int]]:
    reader = Reader(opaque, Check.GPU_FORMAT, "GPU opaque data")
    version = None
    if opaque.startswith(_HEADER):
        reader.take(len(_HEADER), "magic")
        profile, version = reader.uint(2, "profile"), reader.uint(1, "major version")
        if profile:
            raise reader.error(f"unknown opaque data profile {profile}; known is 0")
        reader.take(1, "minor version")
        reader.zeros(2, "reserved")
    fields: dict[int, bytes] = {}
    svns: dict[int, int] = {}
    typed = version is not None
    while reader.remaining:
        kind = reader.uint(2, "field type")
        value_type = reader.uint(2, "field value type") if typed else 0
        value = reader.take(reader.uint(2, "field length"), f"field {kind}")
        if kind in fields:
            raise reader.error(f"field {kind} appears twice")
        fields[kind] = value
        if value_type == _SVN_VALUE_TYPE and len(value) == 2:
            svns[kind] = int.from_bytes(value, "little")
    if version is None:
        version = _uint(fields, _Field.VERSION, 8) or 0
    if version > MAX_OPAQUE_VERSION:
        raise reader.error(f"unknown opaque data version {version}; the newest known is {MAX_OPAQUE_VERSION}")
    return version, fields, svns


def _evidence(
    signed: bytes,
    signature: bytes,
    nonce: bytes,
    measurements: tuple[bytes, ...],
    version: int,
    fields: dict[int, bytes],
    svns: dict[int, int],
) -> GpuEvidence:
    switch = _Field.SWITCH_GPU_PDIS in fields
    return GpuEvidence(
        signed=signed,
        signature=signature,
        nonce=nonce,
        measurements=measurements,
        opaque_version=version,
        switch=switch,
        driver="" if switch else _text(fields, _Field.DRIVER, required=True),
        vbios=_text(fields, _Field.VBIOS, required=True) if switch else _binary_vbios(fields),
        fwid=_sized(fields, _Field.FWID, DIGEST_BYTES),
        nvdec0=_flag(fields, _Field.NVDEC0, required=not switch),
        feature=_feature(fields),
        protected_pcie=_flag(fields, _Field.PROTECTED_PCIE),
        project=_text(fields, _Field.PROJECT),
        project_sku=_text(fields, _Field.PROJECT_SKU),
        chip_sku=_text(fields, _Field.CHIP_SKU),
        chip=_text(fields, _Field.CHIP),
        board_id=_uint(fields, _Field.BOARD_ID, 4),
        pdis=(_own_pdi(fields),) if switch else _pdis(fields, _Field.PDI),
        gpu_pdis=_pdis(fields, _Field.SWITCH_GPU_PDIS),
        svns=svns,
    )


def _malformed(kind: _Field, detail: str) -> MalformedError:
    return MalformedError(Check.GPU_FORMAT, f"opaque field {kind} ({kind.name.lower()}) {detail}")


def _sized(fields: Mapping[int, bytes], kind: _Field, size: int) -> bytes | None:
    value = fields.get(kind)
    if value is not None and len(value) != size:
        raise _malformed(kind, f"must have {size} bytes, found {len(value)}")
    return value


def _uint(fields: Mapping[int, bytes], kind: _Field, limit: int) -> int | None:
    value = fields.get(kind)
    if value is None:
        return None
    if not 0 < len(value) <= limit:
        raise _malformed(kind, f"must have 1 to {limit} bytes, found {len(value)}")
    return int.from_bytes(value, "little")


def _text(fields: Mapping[int, bytes], kind: _Field, *, required: bool = False) -> str:
    text = fields.get(kind, b"").rstrip(b"\0").decode("latin-1")
    if not re.fullmatch(r"[0-9A-Za-z._-]*", text, re.ASCII) or (required and not text):
        raise _malformed(kind, f"must be a name or version, found {text!r}" if text else "is missing")
    return text


def _flag(fields: Mapping[int, bytes], kind: _Field, *, required: bool = False) -> bool | None:
    match fields.get(kind):
        case b"\xaa":
            return True
        case b"\x55":
            return False
        case None if not required:
            return None
        case found:
            raise _malformed(
                kind, f"must be aa or 55, found {found.hex() if found is not None else 'nothing'}"
            )


def _feature(fields: Mapping[int, bytes]) -> Feature | None:
    value = _uint(fields, _Field.FEATURE, 8)
    if value is None:
        return None
    if value >= len(Feature):
        raise _malformed(_Field.FEATURE, f"is an unknown feature {value}")
    return list(Feature)[value]


def _binary_vbios(fields: Mapping[int, bytes]) -> str:
    """96.00.74.00.1A from 00 74 00 96 1a 00 00 00: four bytes back to front, then the fifth."""
    value = _sized(fields, _Field.VBIOS, 8)
    if value is None:
        raise _malformed(_Field.VBIOS, "is missing")
    return ".".join(f"{b:02X}" for b in (*value[3::-1], value[4]))


def _own_pdi(fields: Mapping[int, bytes]) -> bytes:
    value = _sized(fields, _Field.PDI, 8)
    if value is None:
        raise _malformed(_Field.PDI, "is missing")
    return value


def _pdis(fields: Mapping[int, bytes], kind: _Field) -> tuple[bytes, ...]:
    """Distinct PDIs in the byte order in which a switch gives its own; zero means no link.

    A switch lists its eight GPUs first, and then the ports that lead to them.
    """
    value = fields.get(kind, b"")
    if len(value) % 8:
        raise _malformed(kind, f"must be PDIs of 8 bytes, found {len(value)} bytes")
    if kind is _Field.SWITCH_GPU_PDIS:
        value = value[:64]
    return tuple(sorted({value[i : i + 8][::-1] for i in range(0, len(value), 8)} - {bytes(8)}))
