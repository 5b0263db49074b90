"""X.509 as the vendors use it: short chains to a pinned key, CRLs with both dates, nothing implied.

Signatures are verified once per process and remembered by the certificates' own bytes; validity and
revocation depend on the time asked about and are judged on every call.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Generic, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.roots import Root

T = TypeVar("T")

MAX_CERTIFICATE_BYTES = 16 * 1024
MAX_CRL_BYTES = 1024 * 1024  # Intel's processor CRL is the largest seen, about 100 KiB
_CACHE = 512
_CRL_CACHE = 32  # lists are remembered before they are judged: this bounds what strangers can fill
_END = b"-----END CERTIFICATE-----"
_UNDERSTOOD = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)


class ById(Generic[T]):
    """A cache key by identity. Lists have no hash, certificates a slow one; parsing gives equal bytes one object."""

    __slots__ = ("item",)

    def __init__(self, item: T) -> None:
        self.item = item

    def __hash__(self) -> int:
        return id(self.item)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and self.item is other.item


def _serial_zero_accepted() -> AbstractContextManager[object]:
    """Every VCEK and VLEK that AMD issues has serial number 0; RFC 5280 forbids it, and loading one warns.

    What `cryptography` intends to refuse in a later release is silent here as well: it is refused then.
    """
    return warnings.catch_warnings(action="ignore", category=CryptographyDeprecationWarning)


@lru_cache(maxsize=_CACHE)
def _parse_block(pem: bytes) -> x509.Certificate:
    with _serial_zero_accepted():
        return _touched(x509.load_pem_x509_certificate(pem))


def _parse_pem(pem: bytes) -> tuple[x509.Certificate, ...]:
    """One certificate at a time, since a new leaf mostly comes with known issuers."""
    *blocks, rest = pem.split(_END)
    if not blocks or b"-----" in rest:
        raise ValueError("no certificate, or an unfinished one")
    return tuple(_parse_block(block.lstrip() + _END) for block in blocks)


@lru_cache(maxsize=_CACHE)
def _parse_der(der: bytes) -> x509.Certificate:
    with _serial_zero_accepted():
        return _touched(x509.load_der_x509_certificate(der))


@lru_cache(maxsize=_CRL_CACHE)
def _parse_crl(der: bytes) -> x509.CertificateRevocationList:
    crl = x509.load_der_x509_crl(der)
    # what is parsed lazily would fail later, outside the caller's guard
    _ = (crl.extensions, crl.last_update_utc, crl.next_update_utc, crl.issuer)
    return crl


def _touched(cert: x509.Certificate) -> x509.Certificate:
    """`cert`, whose lazy fields are parsed now, so that a bad one fails here."""
    _ = (
        cert.extensions,
        cert.subject,
        cert.public_key(),
        cert.not_valid_before_utc,
        cert.not_valid_after_utc,
    )
    return cert


def parse_chain(pem: bytes, check: Check, what: str, *, length: int) -> tuple[x509.Certificate, ...]:
    """Exactly `length` PEM certificates, leaf first. Judges nothing."""
    if len(pem) > length * MAX_CERTIFICATE_BYTES:
        raise MalformedError(check, f"{what}: {len(pem)} bytes is more than {length} certificates can need")
    try:
        certs = _parse_pem(pem)
    except Exception as exc:  # cryptography raises ValueError and several others for bad DER
        raise MalformedError(check, f"{what}: not PEM certificates ({exc})") from exc
    if len(certs) != length:
        raise MalformedError(check, f"{what}: expected {length} certificates, found {len(certs)}")
    return certs


def parse_certificate(data: bytes, check: Check, what: str) -> x509.Certificate:
    """One certificate, DER or PEM. Judges nothing."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise MalformedError(check, f"{what}: {len(data)} bytes is too large for a certificate")
    if data.lstrip().startswith(b"-----BEGIN"):
        return parse_chain(data, check, what, length=1)[0]
    try:
        return _parse_der(data)
    except Exception as exc:
        raise MalformedError(check, f"{what}: not a DER certificate ({exc})") from exc


def parse_crl(der: bytes, check: Check, what: str) -> x509.CertificateRevocationList:
    """One DER revocation list. Judges nothing."""
    if len(der) > MAX_CRL_BYTES:
        raise MalformedError(check, f"{what}: {len(der)} bytes is too large for a CRL")
    try:
        return _parse_crl(der)
    except Exception as exc:
        raise MalformedError(check, f"{what}: not a DER CRL ({exc})") from exc


def spki_sha256(cert: x509.Certificate) -> bytes:
    """What roots are pinned by."""
    return _spki_sha256(ById(cert))


@lru_cache(maxsize=_CACHE)
def _spki_sha256(key: ById[x509.Certificate]) -> bytes:
    spki = key.item.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(spki).digest()


def common_name(name: x509.Name) -> str:
    values = [str(a.value) for a in name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return values[0] if len(values) == 1 else name.rfc4514_string()


def find_root(cert: x509.Certificate, roots: Sequence[Root], check: Check) -> Root:
    """The pinned root whose key `cert` carries. The name on the certificate counts for nothing."""
    pin = spki_sha256(cert)
    for root in roots:
        if root.spki_sha256 == pin:
            return root
    expected = (
        ", ".join(f"{r.name} ({r.spki_sha256.hex()[:16]}…)" for r in roots) or "nothing: no root is trusted"
    )
    raise VerificationError(
        check,
        f"root {common_name(cert.subject)!r} has key {pin.hex()[:16]}…, but this policy trusts {expected}",
        advice="The root of a simulated TEE has to be named in the policy (`enclave-server policy` prints one); anything else is forged",
    )


@lru_cache(maxsize=_CACHE)
def _signed_by(cert_key: ById[x509.Certificate], issuer_key: ById[x509.Certificate]) -> str:
    """Empty when `issuer` issued `cert`, else the reason. Cached: it depends on nothing but the two certificates."""
    cert, issuer = cert_key.item, issuer_key.item
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return "its issuer has no BasicConstraints"
    if not constraints.ca:
        return "its issuer is not a CA (BasicConstraints)"
    if (usage := _key_usage(issuer)) is not None and not usage.key_cert_sign:
        return "its issuer may not sign certificates (KeyUsage)"
    if unknown := _not_understood(cert.extensions, _UNDERSTOOD):
        return f"it has a critical extension that is not understood ({unknown})"
    try:
        cert.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as exc:
        return f"its signature or issuer name does not match ({str(exc) or 'bad signature'})"
    return ""


def verify_issued_by(cert: x509.Certificate, issuer: x509.Certificate, check: Check) -> None:
    """`issuer` is a CA, is named as the issuer, and its key signed `cert`."""
    if reason := _signed_by(ById(cert), ById(issuer)):
        raise VerificationError(
            check,
            f"{common_name(cert.subject)!r} was not issued by {common_name(issuer.subject)!r}: {reason}",
        )


def check_validity(cert: x509.Certificate, now: datetime, check: Check) -> None:
    if not cert.not_valid_before_utc <= now <= cert.not_valid_after_utc:
        raise VerificationError(
            check,
            f"{common_name(cert.subject)!r} is valid from {cert.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} "
            f"to {cert.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}, asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )


def _key_usage(cert: x509.Certificate) -> x509.KeyUsage | None:
    """What its key may be used for; None where the certificate does not say."""
    try:
        return cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _not_understood(extensions: x509.Extensions, known: tuple[type[x509.ExtensionType], ...]) -> str:
    """The first critical extension outside `known` (RFC 5280, 4.2 and 5.2: such a document must be refused)."""
    return next(
        (e.oid.dotted_string for e in extensions if e.critical and not isinstance(e.value, known)), ""
    )


@lru_cache(maxsize=_CRL_CACHE)
def _crl_signed_by(list_key: ById[x509.CertificateRevocationList], issuer_key: ById[x509.Certificate]) -> str:
    crl, issuer = list_key.item, issuer_key.item
    if crl.issuer != issuer.subject:
        return f"it names {common_name(crl.issuer)!r} as issuer"
    if (usage := _key_usage(issuer)) is not None and not usage.crl_sign:
        return "that certificate may not sign CRLs (KeyUsage)"
    if unknown := _not_understood(crl.extensions, ()):  # a delta, or a list of some certificates only
        return f"it has a critical extension that is not understood ({unknown})"
    try:
        valid = crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]  # RSA and EC only, as parsed
    except (TypeError, UnsupportedAlgorithm, ValueError) as exc:
        return str(exc)
    return "" if valid else "the signature does not verify"


def verify_crl(
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    now: datetime,
    *,
    signature: Check,
    dates: Check,
) -> datetime:
    """The CRL is `issuer`'s and is in date at `now`. Returns its nextUpdate."""
    if reason := _crl_signed_by(ById(crl), ById(issuer)):
        raise VerificationError(
            signature, f"the CRL was not signed by {common_name(issuer.subject)!r}: {reason}"
        )
    until = crl.next_update_utc
    if until is None or not crl.last_update_utc <= now <= until:
        raise VerificationError(
            dates,
            f"the CRL of {common_name(crl.issuer)!r} covers {crl.last_update_utc:%Y-%m-%dT%H:%M:%SZ} to "
            f"{until and until.strftime('%Y-%m-%dT%H:%M:%SZ')}, asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )
    return until


def check_not_revoked(cert: x509.Certificate, crl: x509.CertificateRevocationList, check: Check) -> None:
    """Not on a CRL that `verify_crl` accepted."""
    if crl.get_revoked_certificate_by_serial_number(cert.serial_number) is not None:
        raise VerificationError(
            check,
            f"{common_name(cert.subject)!r} (serial {cert.serial_number:x}) is revoked by {common_name(crl.issuer)!r}",
        )
