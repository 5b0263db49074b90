"""ECDSA P-256 as Intel writes it in quotes and collateral: r and s of 32 bytes each, big endian."""

from __future__ import annotations

from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from attestation._x509 import ById
from attestation.checks import Check
from attestation.errors import VerificationError

_ALGORITHM = ec.ECDSA(SHA256())


def verify_signed_by(cert: x509.Certificate, signature: bytes, data: bytes, check: Check, what: str) -> None:
    """`cert`'s key signed `data`. Remembered by content: the same collateral comes with quote after quote."""
    try:
        _verify_once(ById(cert), signature, data)
    except (InvalidSignature, ValueError) as exc:
        raise VerificationError(check, f"{what}: {str(exc) or 'the signature does not verify'}") from exc


def verify_signed_by_raw_key(point: bytes, signature: bytes, data: bytes, check: Check, what: str) -> None:
    """The P-256 key with the coordinates `point` (x and y) signed `data`."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError as exc:
        raise VerificationError(check, f"{what}: the key is no point of P-256") from exc
    try:
        _verify(key, signature, data)
    except (InvalidSignature, ValueError) as exc:
        raise VerificationError(check, f"{what}: {str(exc) or 'the signature does not verify'}") from exc


@lru_cache(maxsize=512)
def _verify_once(cert: ById[x509.Certificate], signature: bytes, data: bytes) -> None:
    """Failures raise and so are not remembered: only what Intel signed takes up memory."""
    _verify(cert.item.public_key(), signature, data)


def _verify(key: object, signature: bytes, data: bytes) -> None:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key is not of P-256")  # noqa: TRY004  # the certificate is wrong, not a type
    if len(signature) != 64:
        raise ValueError(f"expected a signature of 64 bytes, found {len(signature)}")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key.verify(encode_dss_signature(r, s), data, _ALGORITHM)
