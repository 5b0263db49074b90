"""Certificates for the enclave's own TLS keys, for clients that know names and authorities and nothing of attestation.

Each TLS key is made in the enclave, stands in a statement, and never leaves. What the owner gives, as a secret, is an issuer:
the certificate of an intermediate authority, best constrained to the enclave's names, and its key. So a new key has a
certificate at once, without anybody being asked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from attestation.binding import Statement

MAX_CHAIN = 10
_NO_CERTIFICATE = (UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)  # no ValueErrors


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """The owner's authority: its certificate and those above it but the root, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    names: tuple[str, ...]  # of the enclave

    def certify(self, key: ec.EllipticCurvePublicKey, statement: Statement, digest: bytes) -> bytes:
        """The PEM that shows this key: its certificate, for as long as the statement and the issuer last, and the chain.

        The same in all workers. Empty when the issuer has ended: then nobody's word is better than its own."""
        issuer = self.chain[0]
        start = datetime.fromtimestamp(statement.not_before, UTC)
        end = datetime.fromtimestamp(statement.not_after, UTC)
        start, end = max(start, issuer.not_valid_before_utc), min(end, issuer.not_valid_after_utc)
        if start >= end:
            return b""
        return self.sign(key, serial=int.from_bytes(digest[:16], "big") >> 1 or 1, start=start, end=end)

    def sign(self, key: ec.EllipticCurvePublicKey, *, serial: int, start: datetime, end: datetime) -> bytes:
        """A certificate for the enclave's names, and the chain."""
        issuer = self.chain[0]
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in self.names])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.names[0][:64])]))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(alternative, critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(above, critical=False)
            .sign(self.key, hashes.SHA256(), ecdsa_deterministic=True)
        )
        return b"".join(each.public_bytes(Encoding.PEM) for each in (leaf, *self.chain))


def parse_issuer(pem: bytes, names: tuple[str, ...]) -> Issuer:
    """An authority's certificate, those above it, and its key, from one PEM. ValueError, which quotes nothing, for anything else."""
    try:
        chain = tuple(x509.load_pem_x509_certificates(pem))
        key = load_pem_private_key(pem[max(0, pem.find(b"-----BEGIN PRIVATE KEY")) :], password=None)
        certified = chain[0].public_key()
    except (ValueError, TypeError, *_NO_CERTIFICATE):
        raise ValueError("it is no PEM with certificates and an unencrypted key (PKCS #8)") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certified:
        raise ValueError("its key is not on an elliptic curve, or not that of its first certificate")
    if len(chain) > MAX_CHAIN:
        raise ValueError(f"it has {len(chain)} certificates, more than {MAX_CHAIN}")
    return Issuer(chain=chain, key=key, names=names)


def check_issuer(issuer: Issuer, now: datetime) -> None:
    """Refuse an issuer whose certificates clients would not accept: tried with a key that is thrown away. ValueError says why."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    first = issuer.chain[0]
    if not first.not_valid_before_utc <= now < first.not_valid_after_utc:
        raise ValueError(
            f"its first certificate is valid from {first.not_valid_before_utc} to {first.not_valid_after_utc}"
        )
    try:
        pem = issuer.sign(key, serial=1, start=now, end=first.not_valid_after_utc)
        leaf = x509.load_pem_x509_certificates(pem)[0]
        verifier = PolicyBuilder().store(Store([issuer.chain[-1]])).time(now.replace(tzinfo=None))
        for name in issuer.names:
            verifier.build_server_verifier(x509.DNSName(name)).verify(leaf, list(issuer.chain))
    except (VerificationError, x509.ExtensionNotFound, ValueError, *_NO_CERTIFICATE) as exc:
        raise ValueError(f"what it signs does not verify: {exc}") from exc
