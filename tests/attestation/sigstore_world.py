"""A Sigstore of our own: authority, certificate log and signature log, each with a key of its own; bundles in the real format.

What a public instance's services would answer is made here, with any defect on demand. Only the keys differ.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from attestation.dsse import PAYLOAD_TYPE, pae

ISSUER = "https://token.actions.example"
IDENTITY = "https://git.example/acme/inference/.github/workflows/release.yml@refs/tags/v1.4.0"
SIGNED_AT = datetime(2026, 11, 1, 12, tzinfo=UTC)
_START = datetime(2026, 1, 1, tzinfo=UTC)
_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_OIDC_ISSUER = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_SHA256 = ECDSA(hashes.SHA256())


def _key() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def _spki(key: EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _b64(data: bytes) -> str:
    return b64encode(data).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(**wanted: bool) -> x509.KeyUsage:
    bits = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{bit: wanted.get(bit, False) for bit in bits})


@dataclass
class SigstoreWorld:
    """One instance: its three keys and the files that it would publish."""

    authority: EllipticCurvePrivateKey = field(default_factory=_key)
    certificate_log: EllipticCurvePrivateKey = field(default_factory=_key)
    signature_log: EllipticCurvePrivateKey = field(default_factory=_key)
    at: datetime = SIGNED_AT  # when everything is signed

    @property
    def root(self) -> x509.Certificate:
        public, name = self.authority.public_key(), _name("sigstore of a test")
        builder = x509.CertificateBuilder(name, name, public, 1, _START, _START + timedelta(days=3650))
        ski = x509.SubjectKeyIdentifier.from_public_key(public)
        return (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(ski, critical=False)
            .sign(self.authority, hashes.SHA256())
        )

    def trusted_root(self) -> bytes:
        """The file that clients pin."""
        since = {"start": "2026-01-01T00:00:00Z"}
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [_log("https://log.example", self.signature_log, since)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "test", "commonName": "sigstore of a test"},
                        "uri": "https://authority.example",
                        "certChain": {
                            "certificates": [{"rawBytes": _b64(self.root.public_bytes(Encoding.DER))}]
                        },
                        "validFor": since,
                    }
                ],
                "ctlogs": [_log("https://ctlog.example", self.certificate_log, since)],
                "timestampAuthorities": [],
            }
        ).encode()

    def certificate(
        self, key: EllipticCurvePublicKey, *, identity: str = IDENTITY, issuer: str = ISSUER
    ) -> x509.Certificate:
        """Ten minutes for one signature, logged before it was given out."""
        begin = self.at - timedelta(minutes=1)
        builder = (
            x509.CertificateBuilder(
                self.root.subject, x509.Name([]), key, 7, begin, begin + timedelta(minutes=10)
            )
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.authority.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True
            )
            .add_extension(x509.UnrecognizedExtension(_OIDC_ISSUER, issuer.encode()), critical=False)
        )

        def signed(sct: bytes) -> x509.Certificate:
            listed = struct.pack(">HH", len(sct) + 2, len(sct)) + sct
            extension = x509.UnrecognizedExtension(_SCT_LIST, _octets(listed))
            return builder.add_extension(extension, critical=False).sign(self.authority, hashes.SHA256())

        return signed(self._sct(signed(self._sct(None)).tbs_precertificate_bytes))

    def _sct(self, tbs: bytes | None) -> bytes:
        """A promise of the certificate's log (RFC 6962 §3.2); of nothing where there is nothing to promise yet."""
        at = int(self.at.timestamp()) * 1000
        entry = sha256(_spki(self.authority)).digest() + len(tbs or b"").to_bytes(3) + (tbs or b"")
        signature = self.certificate_log.sign(
            struct.pack(">BBQH", 0, 0, at, 1) + entry + struct.pack(">H", 0), _SHA256
        )
        log_id = sha256(_spki(self.certificate_log)).digest()
        return struct.pack(">B32sQHBBH", 0, log_id, at, 0, 4, 3, len(signature)) + signature  # sha256, ecdsa

    def bundle(
        self,
        payload: bytes,
        *,
        identity: str = IDENTITY,
        issuer: str = ISSUER,
        logged: bytes | None = None,
    ) -> dict[str, Any]:
        """A bundle (v0.3) around `payload`. `logged` is what the log's entry is about, where it lies."""
        key = _key()
        certificate = self.certificate(key.public_key(), identity=identity, issuer=issuer)
        signature = key.sign(pae(payload), _SHA256)
        entry = self.entry(logged or payload, _b64(signature), _b64(certificate.public_bytes(Encoding.PEM)))
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
                "tlogEntries": [entry],
            },
            "dsseEnvelope": {
                "payload": _b64(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": _b64(signature)}],
            },
        }

    def entry(self, payload: bytes, signature: str, verifier: str) -> dict[str, Any]:
        """Entry 2 of a log with three, about a signature: promised, and proven under a checkpoint."""
        body = rfc8785.dumps(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                    "payloadHash": {"algorithm": "sha256", "value": sha256(payload).hexdigest()},
                    "signatures": [{"signature": signature, "verifier": verifier}],
                },
            }
        )
        others = [sha256(b"\0another").digest(), sha256(b"\0entry").digest()]
        left = sha256(b"\1" + others[0] + others[1]).digest()
        root = sha256(b"\1" + left + sha256(b"\0" + body).digest()).digest()
        log_id, at = sha256(_spki(self.signature_log)).digest(), int(self.at.timestamp())
        promise = rfc8785.dumps(
            {"body": _b64(body), "integratedTime": at, "logID": log_id.hex(), "logIndex": 2}
        )
        note = f"log.example - 1\n3\n{_b64(root)}\n"
        signed_note = log_id[:4] + self.signature_log.sign(note.encode(), _SHA256)
        return {
            "logIndex": "2",
            "logId": {"keyId": _b64(log_id)},
            "kindVersion": {"kind": "dsse", "version": "0.0.1"},
            "integratedTime": str(at),
            "inclusionPromise": {"signedEntryTimestamp": _b64(self.signature_log.sign(promise, _SHA256))},
            "inclusionProof": {
                "logIndex": "2",
                "rootHash": _b64(root),
                "treeSize": "3",
                "hashes": [_b64(left)],
                "checkpoint": {"envelope": f"{note}\n\u2014 log.example {_b64(signed_note)}\n"},
            },
            "canonicalizedBody": _b64(body),
        }


def _log(url: str, key: EllipticCurvePrivateKey, since: dict[str, str]) -> dict[str, Any]:
    return {
        "baseUrl": url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": _b64(_spki(key)),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": since,
        },
        "logId": {"keyId": _b64(sha256(_spki(key)).digest())},
    }


def _octets(data: bytes) -> bytes:
    """A DER OCTET STRING."""
    return b"\x04" + (bytes([len(data)]) if len(data) < 128 else b"\x81" + bytes([len(data)])) + data
