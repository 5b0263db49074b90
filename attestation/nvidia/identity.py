"""Who a GPU or NVSwitch is, as its certificate chain says: chip, serial number, device key and firmware digest.

The leaf is made on the device for the firmware it runs (TCG DICE); the certificate above it is the chip's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from attestation._reader import Reader
from attestation._x509 import common_name, spki_sha256
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.nvidia.evidence import DIGEST_BYTES, Arch, arch_of_chip

DEVICE_CHAIN_LENGTH = 5  # firmware, boot ROM, provisioner, chip family, NVIDIA's device identity root
# TCG DICE Attestation Architecture §6: Hopper and LS10 carry the older CompositeDeviceID form, Blackwell a DiceTcbInfo
_COMPOSITE_DEVICE_ID = x509.ObjectIdentifier("2.23.133.5.4.1")
_TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1.1")
_SEQUENCE, _FWIDS = 0x30, 0xA6
_SHA384 = bytes.fromhex("608648016503040202")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Read from a chain that the caller has verified, or not believed yet."""

    arch: Arch
    chip: str  # GH100, GB100, LS_10
    model: str  # as NVIDIA's tokens call it: "GH100 A01 GSP BROM"
    ueid: str  # the leaf's serial number, as NVIDIA's tokens write it
    device: bytes  # SHA-256 of the chip's own public key: the same for every report of one chip
    fwid: bytes


def read_identity(chain: Sequence[x509.Certificate]) -> Identity:
    leaf, chip_cert = chain[0], chain[1]
    chip = common_name(leaf.subject).split(" ")[0]
    return Identity(
        arch=arch_of_chip(chip),
        chip=chip,
        model=common_name(chip_cert.subject),
        ueid=str(leaf.serial_number),
        device=spki_sha256(chip_cert),
        fwid=_fwid(leaf),
    )


def _fwid(leaf: x509.Certificate) -> bytes:
    for extension in leaf.extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        if extension.oid == _COMPOSITE_DEVICE_ID:  # SEQUENCE { version, device key, FWID }
            match _elements(_only(extension.value.value, _SEQUENCE)):
                case [_, _, (tag, fwid)] if tag == _SEQUENCE:
                    return _digest(fwid)
        if (
            extension.oid == _TCB_INFO
        ):  # SEQUENCE { …, [6] SEQUENCE OF FWID, … }: the first is the running firmware
            for tag, fwids in _elements(_only(extension.value.value, _SEQUENCE)):
                if tag == _FWIDS and (first := _elements(fwids)[:1]):
                    return _digest(first[0][1])
    raise _malformed(f"{common_name(leaf.subject)!r} carries no firmware digest that is understood")


def _digest(fwid: bytes) -> bytes:
    """FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }, SHA-384 only."""
    match _elements(fwid):
        case [(6, algorithm), (4, digest)] if algorithm == _SHA384 and len(digest) == DIGEST_BYTES:
            return digest
    raise _malformed("the firmware digest is not SHA-384")


def _only(der: bytes, tag: int) -> bytes:
    match _elements(der):
        case [(found, content)] if found == tag:
            return content
    raise _malformed(f"expected one element with tag {tag:02x}")


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The DER elements that stand one after the other: tag and content of each."""
    reader, elements = Reader(der, Check.GPU_FORMAT, "DICE extension"), []
    while reader.remaining:
        tag, length = reader.uint(1, "tag"), reader.uint(1, "length")
        if length & 0x80:
            length = int.from_bytes(reader.take(length & 0x7F, "long length"), "big")
        elements.append((tag, reader.take(length, "element")))
    return elements


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.GPU_FORMAT, f"DICE extension: {detail}")
