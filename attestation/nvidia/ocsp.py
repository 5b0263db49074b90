"""Revocation by stapled OCSP answers (RFC 6960): who signed, when it counts, and what it says.

NVIDIA does not serve the device's own leaf, and roots are pinned; every certificate between has an answer. An answer
that is missing, or "unknown", is reported to the caller, who must not take it for "good". Signatures are
verified once per process and remembered by content; dates are judged on every call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation._x509 import check_validity, common_name, verify_issued_by
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.collateral import NvidiaCollateral

MAX_OCSP_BYTES = 64 * 1024
_CACHE = 512
_HASHES = {"sha256": SHA256(), "sha384": SHA384(), "sha512": SHA512()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """What an answer says of one certificate, which it names by serial number and by hashes of its issuer."""

    serial: int
    hash_name: str
    issuer_key_hash: bytes
    issuer_name_hash: bytes
    status: ocsp.OCSPCertStatus
    reason: x509.ReasonFlags | None
    this_update: datetime
    next_update: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One OCSP response, parsed and not yet believed."""

    signed: bytes
    signature: bytes
    hash_name: str
    responder_name: x509.Name | None
    responder_key_hash: bytes | None
    certificates: tuple[x509.Certificate, ...]
    nonce: bytes | None
    singles: tuple[Single, ...]


def parse_answer(der: bytes) -> Answer:
    """One successful OCSP response, DER. Judges nothing."""
    if len(der) > MAX_OCSP_BYTES:
        raise MalformedError(Check.GPU_OCSP, f"OCSP answer: {len(der)} bytes, the limit is {MAX_OCSP_BYTES}")
    try:
        return _parse(der)
    except Exception as exc:  # cryptography raises ValueError and several others for bad DER
        raise MalformedError(Check.GPU_OCSP, f"not a successful OCSP answer ({exc})") from exc


@lru_cache(maxsize=_CACHE)
def _parse(der: bytes) -> Answer:
    response = ocsp.load_der_ocsp_response(der)
    if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise ValueError(f"the responder said {response.response_status.name}")
    nonces = [e.value.nonce for e in response.extensions if isinstance(e.value, x509.OCSPNonce)]
    certificates, algorithm = tuple(response.certificates), response.signature_hash_algorithm
    for cert in certificates:  # parsed lazily otherwise
        _ = (cert.extensions, cert.public_key())
    return Answer(
        signed=response.tbs_response_bytes,
        signature=response.signature,
        hash_name=algorithm.name if algorithm else "none",
        responder_name=response.responder_name,
        responder_key_hash=response.responder_key_hash,
        certificates=certificates,
        nonce=nonces[0] if nonces else None,
        singles=tuple(
            Single(
                serial=single.serial_number,
                hash_name=single.hash_algorithm.name,
                issuer_key_hash=single.issuer_key_hash,
                issuer_name_hash=single.issuer_name_hash,
                status=single.certificate_status,
                reason=single.revocation_reason,
                this_update=single.this_update_utc,
                next_update=single.next_update_utc,
            )
            for single in response.responses
        ),
    )


def check_revocation(
    chains: Sequence[Sequence[x509.Certificate]], collateral: NvidiaCollateral, now: datetime
) -> tuple[tuple[str, ...], list[datetime]]:
    """Every certificate but the last of its chain, held against every answer about it: none may be revoked or on hold.

    Returns the names of those that no answer calls good, and the times until which the answers count.
    """
    answers = _by_serial([parse_answer(der) for der in collateral.ocsp])
    unknown, until = [], []
    for cert, issuer in dict.fromkeys(pair for chain in chains for pair in pairwise(chain)):
        good = False
        for answer, single in _about(cert, issuer, answers):
            verify_answer(answer, issuer, now, nonce=collateral.ocsp_nonce)
            until.append(_check_dates(cert, single, now))
            good |= _check_status(cert, single)
        if not good:
            unknown.append(common_name(cert.subject))
    return tuple(unknown), until


def verify_answer(
    answer: Answer, issuer: x509.Certificate, now: datetime, *, nonce: bytes | None = None
) -> None:
    """`issuer`, or a responder it certified for this (RFC 6960 §4.2.2.2), signed the answer."""
    responder = _responder(answer, issuer)
    if responder is not issuer:
        verify_issued_by(responder, issuer, Check.GPU_OCSP)
        check_validity(responder, now, Check.GPU_OCSP)
        _check_may_answer(responder)
    if not _signed(answer.signed, answer.signature, answer.hash_name, responder):
        raise VerificationError(
            Check.GPU_OCSP, f"the OCSP answer's signature is not that of {common_name(responder.subject)!r}"
        )
    if nonce is not None and answer.nonce != nonce:
        found = answer.nonce.hex() if answer.nonce is not None else "none"
        raise VerificationError(Check.GPU_OCSP_NONCE, f"expected OCSP nonce {nonce.hex()}, found {found}")


def _by_serial(answers: Sequence[Answer]) -> dict[int, list[tuple[Answer, Single]]]:
    found: dict[int, list[tuple[Answer, Single]]] = {}
    for answer in answers:
        for single in answer.singles:
            found.setdefault(single.serial, []).append((answer, single))
    return found


def _about(
    cert: x509.Certificate, issuer: x509.Certificate, answers: Mapping[int, Sequence[tuple[Answer, Single]]]
) -> Iterator[tuple[Answer, Single]]:
    """Serial numbers repeat between issuers, so the issuer must be the one that the answer means."""
    for answer, single in answers.get(cert.serial_number, ()):
        named = single.issuer_name_hash, single.issuer_key_hash
        if named == _issuer_hashes(issuer, single.hash_name):
            yield answer, single


@lru_cache(maxsize=_CACHE)
def _issuer_hashes(issuer: x509.Certificate, hash_name: str) -> tuple[bytes, bytes]:
    """RFC 6960 §4.1.1: of the issuer's name, and of its key without tag and length."""
    key = issuer.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b"", b""
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return (
        hashlib.new(hash_name, issuer.subject.public_bytes(), usedforsecurity=False).digest(),
        hashlib.new(hash_name, point, usedforsecurity=False).digest(),
    )


def _responder(answer: Answer, issuer: x509.Certificate) -> x509.Certificate:
    for cert in (issuer, *answer.certificates):
        if answer.responder_key_hash is not None:
            if _issuer_hashes(cert, "sha1")[1] == answer.responder_key_hash:
                return cert
        elif cert.subject == answer.responder_name:
            return cert
    raise VerificationError(
        Check.GPU_OCSP,
        f"the OCSP answer is signed neither by {common_name(issuer.subject)!r} nor by a certificate it carries",
    )


def _check_may_answer(responder: x509.Certificate) -> None:
    for extension in responder.extensions:
        if (
            isinstance(extension.value, x509.ExtendedKeyUsage)
            and ExtendedKeyUsageOID.OCSP_SIGNING in extension.value
        ):
            return
    raise VerificationError(
        Check.GPU_OCSP, f"{common_name(responder.subject)!r} may not sign OCSP answers (ExtendedKeyUsage)"
    )


@lru_cache(maxsize=_CACHE)
def _signed(data: bytes, signature: bytes, hash_name: str, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), _HASHES.get(hash_name)
    if not isinstance(key, ec.EllipticCurvePublicKey) or algorithm is None:
        return False
    try:
        key.verify(signature, data, ec.ECDSA(algorithm))
    except InvalidSignature:
        return False
    return True


def _check_dates(cert: x509.Certificate, single: Single, now: datetime) -> datetime:
    until = single.next_update
    if until is None or not single.this_update <= now <= until:
        raise VerificationError(
            Check.GPU_OCSP_VALIDITY,
            f"the OCSP answer about {common_name(cert.subject)!r} counts from {single.this_update:%Y-%m-%dT%H:%M:%SZ} to "
            f"{f'{until:%Y-%m-%dT%H:%M:%SZ}' if until else 'no stated time'}, asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )
    return until


def _check_status(cert: x509.Certificate, single: Single) -> bool:
    if single.status is ocsp.OCSPCertStatus.REVOKED:
        name, reason = common_name(cert.subject), single.reason
        if reason is x509.ReasonFlags.certificate_hold:
            raise VerificationError(
                Check.GPU_HOLD, f"NVIDIA has put {name!r} (serial {cert.serial_number:x}) on hold"
            )
        raise VerificationError(
            Check.GPU_REVOKED,
            f"{name!r} (serial {cert.serial_number:x}) is revoked: {reason.value if reason else 'no reason given'}",
        )
    return single.status is ocsp.OCSPCertStatus.GOOD
