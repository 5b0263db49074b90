"""Keys, certificates and revocation lists for simulated vendors. Generic: each vendor's half adds its own names.

A development tool: private keys may lie on disk, nothing here is hardened, and no default policy trusts its roots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from attestation.roots import Root

SIMULATED = "SIMULATED - trusts no vendor"

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
Extension = tuple[x509.ExtensionType, bool]  # the extension, and whether it is critical


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate with its private key."""

    cert: x509.Certificate
    key: PrivateKey

    @property
    def pem(self) -> str:
        return self.cert.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(serialization.Encoding.DER)


def p256_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def p384_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def rsa_key(bits: int = 4096) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def name(common_name: str, organization: str = SIMULATED) -> x509.Name:
    """A subject whose organization tells people that it is simulated; verifiers look at the common name."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        ]
    )


def _hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """SHA-256 for P-256, SHA-384 for P-384 and RSA, as Intel, NVIDIA and AMD do."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
        return hashes.SHA256()
    return hashes.SHA384()


def _padding(key: PrivateKey) -> padding.PSS | None:
    """AMD signs certificates and CRLs with RSA-PSS, salt as long as the digest."""
    if isinstance(key, rsa.RSAPrivateKey):
        return padding.PSS(padding.MGF1(hashes.SHA384()), hashes.SHA384.digest_size)
    return None


def issue(  # noqa: PLR0913  # one argument for each thing a certificate says
    subject: x509.Name,
    key: PrivateKey,
    issuer: Signer | None = None,
    *,
    not_before: datetime,
    not_after: datetime,
    ca: bool | None,
    path_length: int | None = None,
    extensions: Sequence[Extension] = (),
    serial: int | None = None,
) -> Signer:
    """A certificate for `key`, self-signed when there is no issuer. `ca=None` leaves BasicConstraints out."""
    signing = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
        builder = builder.add_extension(_key_usage(ca), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Signer(builder.sign(signing, _hash(signing), rsa_padding=_padding(signing)), key)


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def crl(
    issuer: Signer,
    *,
    this_update: datetime,
    next_update: datetime,
    revoked: Sequence[int] = (),
    number: int = 1,
    extensions: Sequence[Extension] = (),
) -> bytes:
    """DER of the issuer's revocation list over the serial numbers `revoked`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.cert.subject)
        .last_update(this_update)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update).build()
        builder = builder.add_revoked_certificate(entry)
    made = builder.sign(issuer.key, _hash(issuer.key), rsa_padding=_padding(issuer.key))
    return made.public_bytes(serialization.Encoding.DER)


def pin(signer: Signer) -> Root:
    """The trust anchor of a simulated root, to name in a policy."""
    spki = signer.cert.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    common_name = signer.cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    return Root(f"SIMULATED {common_name!s}", sha256(spki).digest())


def load_or_make_key(path: Path, make: Callable[[], PrivateKey]) -> PrivateKey:
    """The private key in the PEM file `path`, made and written there when there is none."""
    if path.exists():
        key = serialization.load_pem_private_key(
            path.read_bytes(), None, unsafe_skip_rsa_key_validation=True
        )  # we made it; the check takes longer than everything else that a simulated machine does
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise TypeError(f"{path} holds a {type(key).__name__}")
        return key
    made = make()
    pem = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(pem)
    return made
