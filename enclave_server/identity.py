"""The gateway's keys and the statement that names them. Made in memory and never written; shared with its workers alone.

The receipt key signs answers, the sealing keys open sealed requests, the TLS key ends the clients' connections. They live
until the statement ends; before that they have a successor, see `identities.py`.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import resource
import secrets
import ssl
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID

from attestation.binding import PURPOSE, VERSION, Engine, Image, Keys, Model, Statement
from attestation.receipt import ServedModel
from attestation.sealed import SealingKeys
from attestation.tlog import VerifierKey, own_key
from enclave_server.engine.flags import answer_flags
from enclave_server.engine.topology import topology
from enclave_server.settings import Settings
from enclave_server.tls_certificate import Issuer

_PR_SET_DUMPABLE = 4  # prctl(2)
SKEW = 300  # seconds: a client's clock may be behind ours
_LAST_SECOND = 1  # of a statement: what is under way is brought to an end in it, and nothing is begun
_SIZES = (32, 64, 32, 32, 32, 32)  # receipt key; ML-KEM and X25519 of X-Wing, X25519, tickets; TLS key


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateKeys:
    """One key for each role."""

    receipt: Ed25519PrivateKey
    sealing: SealingKeys
    tls: ec.EllipticCurvePrivateKey

    @classmethod
    def generate(cls) -> PrivateKeys:
        return cls(
            receipt=Ed25519PrivateKey.generate(),
            sealing=SealingKeys.generate(),
            tls=ec.generate_private_key(ec.SECP256R1()),
        )

    def public(self) -> dict[str, bytes]:
        """Their public halves, as members of a statement's `keys`."""
        spki = self.tls.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {
            "receipt_ed25519": self.receipt.public_key().public_bytes_raw(),
            "tls_spki_sha256": sha256(spki).digest(),
            "sealing_x_wing": self.sealing.public_x_wing,
            "sealing_x25519": self.sealing.public_x25519,
        }

    def pack(self) -> bytes:
        """For a worker's ears only."""
        sealing = self.sealing
        return b"".join(
            (
                self.receipt.private_bytes_raw(),
                sealing.mlkem.private_bytes_raw(),
                sealing.mlkem_x25519.private_bytes_raw(),
                sealing.x25519.private_bytes_raw(),
                sealing.tickets,
                self.tls.private_numbers().private_value.to_bytes(32, "big"),
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> PrivateKeys:
        ends = list(itertools.accumulate(_SIZES))
        receipt, mlkem, mlkem_x25519, x25519, tickets, tls = (
            data[end - size : end] for size, end in zip(_SIZES, ends, strict=True)
        )
        return cls(
            receipt=Ed25519PrivateKey.from_private_bytes(receipt),
            sealing=SealingKeys(
                mlkem=MLKEM768PrivateKey.from_seed_bytes(mlkem),
                mlkem_x25519=X25519PrivateKey.from_private_bytes(mlkem_x25519),
                x25519=X25519PrivateKey.from_private_bytes(x25519),
                tickets=tickets,
            ),
            tls=ec.derive_private_key(int.from_bytes(tls, "big"), ec.SECP256R1()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Private keys, and the statement about them."""

    keys: PrivateKeys
    statement: Statement
    statement_bytes: bytes
    statement_digest: bytes
    served: ServedModel = field(init=False)  # as receipts name the model

    def __post_init__(self) -> None:
        model = self.statement.model
        object.__setattr__(self, "served", ServedModel(name=model.names[0], digest=model.digest))

    def seconds_left(self, now: float) -> float:
        """For how long it may still answer; the statement ends a moment later."""
        return self.statement.not_after - _LAST_SECOND - now

    def successor(self, life: timedelta, now: datetime, secrets: bytes | None = None) -> Identity:
        """New keys, and a statement from now on for `life` that says the same of everything but the owner's secrets."""
        return self._succeeded(PrivateKeys.generate(), secrets or b"", *_span(now, life))

    def pack(self) -> bytes:
        """Keys, span and secrets' digest of the statement; `unpacked` of any predecessor makes it whole."""
        span = self.statement.not_before, self.statement.not_after
        times = b"".join(time.to_bytes(8, "big") for time in span)
        return times + self.keys.pack() + (self.statement.secrets or b"")

    def unpacked(self, data: bytes) -> Identity:
        """The successor that was packed elsewhere."""
        start, end = (int.from_bytes(data[at : at + 8], "big") for at in (0, 8))
        return self._succeeded(PrivateKeys.unpack(data[16:]), data[16 + sum(_SIZES) :], start, end)

    def _succeeded(self, keys: PrivateKeys, secrets: bytes, start: int, end: int) -> Identity:
        public = replace(self.statement.keys, **keys.public())
        changes = {"keys": public, "secrets": secrets or None, "not_before": start, "not_after": end}
        return _identity(keys, replace(self.statement, **changes))  # type: ignore[arg-type]


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


def make_identity(
    settings: Settings,
    *,
    engine_version: str,
    now: datetime | None = None,
    log_key: VerifierKey | None = None,  # of the log of receipts; it stays when identities change
    config_file: bytes | None = None,  # digest of the file, where it was held against what was measured
) -> Identity:
    """New keys, and the statement that ties them to this model, engine and configuration."""
    keys = PrivateKeys.generate()
    start, end = _span(now or datetime.now(UTC), timedelta(hours=settings.identity_hours))
    return _identity(
        keys,
        Statement(
            v=VERSION,
            purpose=PURPOSE,
            keys=Keys(**keys.public(), log_ed25519=log_key.key if log_key else None),
            not_before=start,
            not_after=end,
            model=Model(names=(settings.model_name,), digest=bytes.fromhex(settings.model_digest)),
            engine=Engine(
                name="vllm",
                version=engine_version,
                flags=answer_flags(settings) if settings.engine is None else (),
                topology=topology(settings),
            ),
            config=settings.digest(),
            image=Image(build=settings.image_build, source=settings.image_source),
            log_origin=log_key.name if log_key and log_key != own_key(log_key.name) else None,
            config_file=config_file,
        ),
    )


def _span(now: datetime, life: timedelta) -> tuple[int, int]:
    return int(now.timestamp()) - SKEW, int((now + life).timestamp())


def _identity(keys: PrivateKeys, statement: Statement) -> Identity:
    text = statement.to_bytes()
    return Identity(
        keys=keys, statement=statement, statement_bytes=text, statement_digest=sha256(text).digest()
    )


class TlsContext(ssl.SSLContext):
    """A server's context for the TLS key of one identity."""

    statement = b""  # its digest


def keyless_context() -> TlsContext:
    """TLS 1.3 without a key yet, for handshakes that choose one."""
    context = TlsContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # no resumption: every connection shows the key in its handshake
    context.set_alpn_protocols(["http/1.1"])
    return context


def tls_context(identity: Identity, issuer: Issuer | None = None) -> TlsContext:
    """TLS 1.3 with this identity's key, in a certificate by `issuer` or by itself. `ssl` reads keys from files only, so it gets one that exists in memory alone."""
    public = identity.keys.tls.public_key()
    issued = issuer.certify(public, identity.statement, identity.statement_digest) if issuer else b""
    shown = issued or certificate(identity).public_bytes(serialization.Encoding.PEM)
    return _with_key(identity.keys.tls, shown, identity.statement_digest)


def nobodys_context() -> TlsContext:
    """TLS 1.3 with a key that no statement will ever name, for what is said before there is one."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    shown = _self_signed(
        key, x509.random_serial_number(), now - timedelta(seconds=SKEW), now + timedelta(days=7)
    )
    return _with_key(key, shown.public_bytes(serialization.Encoding.PEM), b"")


def _with_key(key: ec.EllipticCurvePrivateKey, shown: bytes, statement: bytes) -> TlsContext:
    context = keyless_context()
    context.statement = statement
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(shown + secret)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def certificate(identity: Identity) -> x509.Certificate:
    """Self-signed: clients trust the key by its place in the statement, never by a name or an issuer. The same in all workers."""
    statement = identity.statement
    start, end = (datetime.fromtimestamp(at, UTC) for at in (statement.not_before, statement.not_after))
    return _self_signed(
        identity.keys.tls, int.from_bytes(identity.statement_digest[:16], "big") >> 1 or 1, start, end
    )


def _self_signed(
    key: ec.EllipticCurvePrivateKey, serial: int, start: datetime, end: datetime
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested-inference enclave")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("enclave.invalid")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
