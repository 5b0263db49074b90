"""Keys, certificates and OCSP answers of a simulated NVIDIA. Every key follows from the root it stands under."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha384
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestation.simulator import pki
from attestation.simulator.nvidia_defects import GpuDefect

FROM, TO = datetime(2020, 1, 1, tzinfo=UTC), datetime(2050, 1, 1, tzinfo=UTC)
DEVICE_NAMES = ("NVIDIA Device Identity CA", "Identity", "Provisioner ICA")
RIM_NAMES = ("NVIDIA CoRIM signing Root CA", "Reference Value CA", "Reference Value L3")


def authorities(root_key: pki.PrivateKey, names: Sequence[str]) -> list[pki.Signer]:
    made: list[pki.Signer] = []
    for name in names:
        key = root_key if not made else derive(root_key, name)
        made.append(issue(name, key, made[-1] if made else None, ca=True))
    return made


def issue(
    name: str,
    key: pki.PrivateKey,
    issuer: pki.Signer | None,
    *,
    ca: bool,
    start: datetime = FROM,
    until: datetime = TO,
    extensions: Sequence[pki.Extension] = (),
) -> pki.Signer:
    """A certificate whose serial number follows from its key, so that it is the same in every process."""
    serial = int.from_bytes(sha384(_secret(key)).digest()[:16], "big") | 1
    return pki.issue(
        pki.name(name),
        key,
        issuer,
        not_before=start,
        not_after=until,
        ca=ca,
        extensions=extensions,
        serial=serial,
    )


def _secret(key: pki.PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def derive(key: pki.PrivateKey, label: str) -> ec.EllipticCurvePrivateKey:
    """A key that follows from another one: fit for a simulator, and for nothing else."""
    secret = int.from_bytes(sha384(_secret(key) + label.encode()).digest(), "big") >> 1
    return ec.derive_private_key(secret | 1, ec.SECP384R1())


def answer(
    cert: x509.Certificate,
    issuer: pki.Signer,
    now: datetime,
    *,
    defect: GpuDefect | None,
    nonce: bytes | None,
) -> bytes:
    """What the issuer's OCSP responder says of `cert` at `now`."""
    responder = _responder(issuer, defect)
    status, reason = _status(cert, defect)
    day = timedelta(days=1)
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=cert,
            issuer=issuer.cert,
            algorithm=SHA384(),
            cert_status=status,
            this_update=now + day if defect is GpuDefect.OCSP_NOT_YET_VALID else now - day,
            next_update=_next_update(now, defect),
            revocation_time=now - day if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=reason,
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, responder.cert)
        .certificates([responder.cert])
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    made = builder.sign(cast(ec.EllipticCurvePrivateKey, responder.key), SHA384())
    der = made.public_bytes(Encoding.DER)
    if defect is GpuDefect.OCSP_FORGED:
        forged = made.signature[:-1] + bytes([made.signature[-1] ^ 1])
        der = der.replace(made.signature, forged)
    return der[:-1] if defect is GpuDefect.OCSP_MALFORMED else der


def _next_update(now: datetime, defect: GpuDefect | None) -> datetime | None:
    if defect is GpuDefect.OCSP_WITHOUT_END:
        return None
    return now - timedelta(hours=1) if defect is GpuDefect.OCSP_EXPIRED else now + timedelta(days=2)


def _responder(issuer: pki.Signer, defect: GpuDefect | None) -> pki.Signer:
    """A certificate for answering, by the issuer itself (RFC 6960 §4.2.2.2)."""
    usage = ExtendedKeyUsageOID.OCSP_SIGNING
    if defect is GpuDefect.OCSP_RESPONDER_NOT_NAMED:
        usage = ExtendedKeyUsageOID.CODE_SIGNING
    key, signing = derive(issuer.key, "responder"), issuer
    if defect is GpuDefect.OCSP_RESPONDER_OF_OTHER_CA:
        signing = issue("another CA", derive(issuer.key, "stranger"), None, ca=True)
    return issue(
        "OCSP responder", key, signing, ca=False, extensions=[(x509.ExtendedKeyUsage([usage]), False)]
    )


def _status(
    cert: x509.Certificate, defect: GpuDefect | None
) -> tuple[ocsp.OCSPCertStatus, x509.ReasonFlags | None]:
    name = cert.subject.rfc4514_string()
    if "BROM" in name and defect is GpuDefect.CHIP_REVOKED:
        return ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.key_compromise
    if "BROM" in name and defect is GpuDefect.CHIP_ON_HOLD:
        return ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.certificate_hold
    if "L4" in name and defect is GpuDefect.RIM_SIGNER_REVOKED:
        return ocsp.OCSPCertStatus.REVOKED, x509.ReasonFlags.superseded
    unknown = "BROM" in name and defect is GpuDefect.OCSP_UNKNOWN
    return ocsp.OCSPCertStatus.UNKNOWN if unknown else ocsp.OCSPCertStatus.GOOD, None
