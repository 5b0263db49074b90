"""This boot's keys and the statement that names them. Made in memory, never written, never exported.

The receipt key signs answers, the sealing keys open sealed requests, the TLS key ends the clients' connections. They live
as long as this process; the statement says until when at most.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import secrets
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from attestation.binding import PURPOSE, VERSION, Engine, Image, Keys, Model, Statement
from attestation.sealed import SealingKeys
from enclave_server.engine_flags import answer_flags
from enclave_server.settings import Settings

_PR_SET_DUMPABLE = 4  # prctl(2)
_SKEW = timedelta(minutes=5)  # a client's clock may be behind ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The private keys of this boot, and the statement about them."""

    receipt_key: Ed25519PrivateKey
    sealing_keys: SealingKeys
    tls_key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    statement: Statement
    statement_bytes: bytes
    statement_digest: bytes

    def expired(self) -> bool:
        return time.time() >= self.statement.not_after


class ReceiptNumbers:
    """Ids that no other receipt has, and a counter that goes up: one series for each worker of each boot."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(8)
        self._counter = itertools.count(1)

    def next(self) -> tuple[str, int]:
        counter = next(self._counter)
        return f"rcpt-{self._boot}-{counter}", counter


def keep_memory_private() -> None:
    """No core dump of this process, and no other process of the same user may look into it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def make_identity(settings: Settings, *, engine_version: str, now: datetime | None = None) -> Identity:
    """New keys, and the statement that ties them to this model, engine and configuration."""
    now = now or datetime.now(UTC)
    receipt_key = Ed25519PrivateKey.generate()
    sealing_keys = SealingKeys.generate()
    tls_key = ec.generate_private_key(ec.SECP256R1())
    start, end = now - _SKEW, now + timedelta(hours=settings.identity_hours)
    certificate = _certificate(tls_key, start, end)
    spki = tls_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    statement = Statement(
        v=VERSION,
        purpose=PURPOSE,
        keys=Keys(
            receipt_ed25519=receipt_key.public_key().public_bytes_raw(),
            tls_spki_sha256=sha256(spki).digest(),
            sealing_x_wing=sealing_keys.public_x_wing,
            sealing_x25519=sealing_keys.public_x25519,
        ),
        not_before=int(start.timestamp()),
        not_after=int(end.timestamp()),
        model=Model(names=(settings.model_name,), digest=bytes.fromhex(settings.model_digest)),
        engine=Engine(name="vllm", version=engine_version, flags=answer_flags(settings)),
        config=settings.digest(),
        image=Image(build=settings.image_build, source=settings.image_source),
    )
    text = statement.to_bytes()
    return Identity(
        receipt_key=receipt_key,
        sealing_keys=sealing_keys,
        tls_key=tls_key,
        certificate=certificate,
        statement=statement,
        statement_bytes=text,
        statement_digest=sha256(text).digest(),
    )


def tls_context(identity: Identity) -> ssl.SSLContext:
    """TLS 1.3 with this boot's key. `ssl` reads keys from files only, so it gets one that exists in memory alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no resumption: every connection shows the key in its handshake
    context.set_alpn_protocols(["http/1.1"])
    key = identity.tls_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.certificate.public_bytes(serialization.Encoding.PEM) + key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def _certificate(key: ec.EllipticCurvePrivateKey, start: datetime, end: datetime) -> x509.Certificate:
    """Self-signed: clients trust the key by its place in the statement, never by a name or an issuer."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested-inference enclave")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("enclave.invalid")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
