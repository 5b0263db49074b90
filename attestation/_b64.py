"""Base64url without padding (RFC 7515 §2), as headers, CMW records and receipts write it."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

from attestation.checks import Check
from attestation.errors import MalformedError


def b64url_encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def b64url_decode(text: str, check: Check, what: str) -> bytes:
    """Strict: no padding, no foreign characters, one text for one value."""
    try:
        data = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError as exc:  # binascii.Error and UnicodeEncodeError are ValueErrors
        raise MalformedError(check, f"{what} is not base64url") from exc
    if b64url_encode(data) != text:
        raise MalformedError(check, f"{what} is not base64url without padding")
    return data
