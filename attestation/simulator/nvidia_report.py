"""The bytes of simulated NVIDIA reports: SPDM request and response, opaque data, and DICE extensions."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from attestation.nvidia.evidence import DIGEST_BYTES, Arch

_SHA384_OID = bytes.fromhex("0609608648016503040202")


def make_report(
    key: ec.EllipticCurvePrivateKey, nonce: bytes, measurements: Sequence[bytes], opaque: bytes
) -> bytes:
    """Request ‖ response, signed."""
    record = b"".join(
        struct.pack(f"<BBHBH{DIGEST_BYTES}s", index, 1, DIGEST_BYTES + 3, 1, DIGEST_BYTES, value)
        for index, value in enumerate(measurements, 1)
    )
    signed = b"".join(
        (
            b"\x11\xe0\x01\xff" + nonce + b"\0",
            b"\x11\x60\0\0" + bytes([len(measurements)]) + len(record).to_bytes(3, "little") + record,
            sha256(b"simulated response nonce" + nonce).digest(),
            len(opaque).to_bytes(2, "little") + opaque,
        )
    )
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA384())))
    return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")


def plain_opaque(fields: Mapping[int, bytes]) -> bytes:
    """The layout without a header, as drivers up to 590 write it."""
    return b"".join(struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items())


def typed_opaque(
    fields: Mapping[int, bytes], svns: Mapping[int, int], *, major: int = 2, profile: int = 0
) -> bytes:
    """The layout with a header and value types; security version numbers are of value type 0x87."""
    header = b"NVDAOD" + struct.pack("<HBBH", profile, major, 0, 0)
    entries = [(kind, 0, value) for kind, value in fields.items()]
    entries += [(kind, 0x87, struct.pack("<H", svn)) for kind, svn in svns.items()]
    return header + b"".join(struct.pack("<HHH", k, t, len(v)) + v for k, t, v in entries)


def binary_vbios(version: str) -> bytes:
    """The eight bytes that stand for a GPU's VBIOS version."""
    parts = bytes.fromhex(version.replace(".", ""))
    return parts[3::-1] + parts[4:] + bytes(3)


def dice_extension(arch: Arch, key: ec.EllipticCurvePublicKey, fwid: bytes) -> x509.UnrecognizedExtension:
    """The firmware digest as the leaf carries it: a CompositeDeviceID, on Blackwell a DiceTcbInfo."""
    digest = _der(0x30, _SHA384_OID, _der(0x04, fwid))
    if arch is Arch.BLACKWELL:
        info = _der(0x30, _der(0x80, b"SIMULATED"), _der(0x83, b"\1"), _der(0xA6, digest))
        return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1.1"), info)
    subject_key = x509.SubjectKeyIdentifier.from_public_key(key).digest
    device = _der(0x30, _der(0x02, b"\1"), _der(0x30, _der(0x04, subject_key)), digest)
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("2.23.133.5.4.1"), device)


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    length = bytes([len(content)]) if len(content) < 128 else b"\x81" + bytes([len(content)])
    return bytes([tag]) + length + content
