"""Sealed requests: a whole HTTP request encrypted to the enclave, and read there. `sealed_answer` has the way back. No I/O.

HPKE is `cryptography`'s; only the framing is ours. A request is bound to the statement that names its key, and brings the
secret that its answer is encrypted with. With a ticket of an answer before (`sealed_ticket`) it needs no key exchange.
`docs/protocol.md` §7 has the bytes.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from attestation import sealed_ticket
from attestation._lengths import LENGTH, bucket, padded, prefixed, take_prefixed, take_uint
from attestation._reader import Reader
from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import MAX_HEAD_BYTES, RequestHead, dump_head, parse_request_head
from attestation.sealed_ticket import Ticket

PATH = "/sealed"
REQUEST_TYPE = "application/vnd.attested-inference.sealed-request"
VERSION = 1
MAX_CLOCK_SKEW = 300  # seconds between the time in a request and the enclave's clock
SECRET_BYTES = 32
REQUEST_BUCKET = 1024  # the smallest padded length
_INFO = b"attested-inference/sealed-request/v1\x00"
_DIGEST, _KEY, _TAG = 32, 32, 16


@dataclass(frozen=True, slots=True)
class Suite:
    """How a request is encrypted: HPKE's KEM, KDF and AEAD by their numbers (RFC 9180 §7)."""

    name: Literal["x-wing", "x25519", "ticket"]
    number: bytes
    enc_bytes: int  # what stands before the ciphertext: the encapsulated key, or which ticket


X_WING = Suite("x-wing", bytes.fromhex("647a00010002"), hpke.KEM.MLKEM768_X25519.enc_length())
X25519 = Suite("x25519", bytes.fromhex("002000010002"), hpke.KEM.X25519.enc_length())
TICKET = Suite("ticket", bytes.fromhex("000000010002"), sealed_ticket.ENC_BYTES)  # KEM 0: none
SUITES = {suite.number: suite for suite in (X_WING, X25519, TICKET)}
HPKE_X_WING, _HPKE_X25519 = (
    hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    for kem in (hpke.KEM.MLKEM768_X25519, hpke.KEM.X25519)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKeys:
    """What opens requests: one private key for each suite, which share nothing."""

    mlkem: MLKEM768PrivateKey  # X-Wing is ML-KEM-768 and X25519 together
    mlkem_x25519: X25519PrivateKey
    x25519: X25519PrivateKey
    tickets: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SealingKeys:
        return cls(
            mlkem=MLKEM768PrivateKey.generate(),
            mlkem_x25519=X25519PrivateKey.generate(),
            x25519=X25519PrivateKey.generate(),
            tickets=secrets.token_bytes(sealed_ticket.KEY_BYTES),
        )

    @property
    def public_x_wing(self) -> bytes:
        parts = self.mlkem.public_key().public_bytes_raw(), self.mlkem_x25519.public_key().public_bytes_raw()
        return b"".join(parts)

    @property
    def public_x25519(self) -> bytes:
        return self.x25519.public_key().public_bytes_raw()


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A sealed request as it is on the wire: read, and not opened."""

    suite: Suite
    statement: bytes  # the digest of the statement whose key it is sealed to
    enc: bytes
    ciphertext: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A request that was sealed to one of our keys. Its content is still to be read."""

    enc: bytes
    secret: bytes = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The request inside."""

    time: int  # Unix seconds, by the sender's clock
    head: RequestHead
    body: bytes = field(repr=False)


# ------------------------------------------------------------------------------------------------------- requests


def seal_request(
    head: RequestHead, body: bytes, *, keys: Keys, statement: bytes, now: datetime, suite: Suite = X_WING
) -> tuple[bytes, AnswerOpener]:
    """`head` and `body` for the enclave whose verified statement has `keys` and the digest `statement`; and what opens its answer."""
    prefix = _prefix(suite, statement)
    secret, content = _content(head, body, now)
    sealed = _encrypt(suite, keys, content, _INFO + prefix)
    return prefix + sealed, AnswerOpener(secret, sealed[: suite.enc_bytes])


def seal_with_ticket(
    head: RequestHead, body: bytes, *, ticket: Ticket, statement: bytes, now: datetime
) -> tuple[bytes, AnswerOpener]:
    """The same for the enclave that gave `ticket` in an answer under this statement."""
    prefix = _prefix(TICKET, statement)
    secret, content = _content(head, body, now)
    enc, ciphertext = sealed_ticket.encrypt(ticket, prefix, content)
    return prefix + enc + ciphertext, AnswerOpener(secret, enc)


def _prefix(suite: Suite, statement: bytes) -> bytes:
    return bytes([VERSION]) + suite.number + statement


def _content(head: RequestHead, body: bytes, now: datetime) -> tuple[bytes, bytes]:
    """The secret for the answer, and all that is encrypted."""
    secret = secrets.token_bytes(SECRET_BYTES)
    content = secret + int(now.timestamp()).to_bytes(8, "big") + prefixed(dump_head(head)) + prefixed(body)
    return secret, padded(content, REQUEST_BUCKET)


def parse_envelope(data: bytes) -> Envelope:
    """Read a sealed request. Opens nothing."""
    reader = Reader(data, Check.SEALED_FORMAT, "sealed request")
    reader.expect(bytes([VERSION]), "version")
    number = reader.take(6, "suite")
    suite = SUITES.get(number)
    if suite is None:
        names = ", ".join(f"{s.number.hex()} ({s.name})" for s in SUITES.values())
        raise MalformedError(Check.SEALED_SUITE, f"expected one of {names}, found {number.hex()}")
    statement = reader.take(_DIGEST, "statement digest")
    enc = reader.take(suite.enc_bytes, "enc")
    if reader.remaining < _TAG:
        raise reader.error("there is no ciphertext")
    return Envelope(
        suite=suite, statement=statement, enc=enc, ciphertext=reader.take(reader.remaining, "ciphertext")
    )


def open_request(envelope: Envelope, keys: SealingKeys) -> Opened:
    """Decrypt with the keys of the statement that the envelope names. Whether it is new is for the caller to say."""
    try:
        content = _decrypt(envelope, keys)
    except (InvalidTag, ValueError) as exc:
        raise VerificationError(Check.SEALED_OPEN, "not sealed to this key, or altered on the way") from exc
    if len(content) < SECRET_BYTES:
        raise MalformedError(Check.SEALED_FORMAT, "the content holds no response secret")
    return Opened(enc=envelope.enc, secret=content[:SECRET_BYTES], content=content[SECRET_BYTES:])


def parse_message(content: bytes) -> Message:
    """Read what was inside: all of it, with nothing but zeros after the body."""
    reader = Reader(content, Check.SEALED_FORMAT, "sealed request's content")
    time = take_uint(reader, 8, "time")
    head, body = take_prefixed(reader, "head"), take_prefixed(reader, "body")
    reader.end(padding=True)
    return Message(time=time, head=parse_request_head(head, limit=MAX_HEAD_BYTES), body=body)


def check_time(message: Message, now: datetime) -> None:
    """The request was sealed within MAX_CLOCK_SKEW of `now`, which is how long replays are remembered."""
    if abs(now.timestamp() - message.time) > MAX_CLOCK_SKEW:
        raise VerificationError(
            Check.SEALED_TIME,
            f"sealed at {message.time}, opened at {int(now.timestamp())}; at most {MAX_CLOCK_SKEW} s apart are accepted",
            advice="Set this machine's clock, or have the operator set the enclave's",
        )


def max_request_bytes(body: int) -> int:
    """The length of the longest sealed request whose body has at most `body` bytes."""
    content = SECRET_BYTES + 8 + LENGTH + MAX_HEAD_BYTES + LENGTH + body
    return 1 + 6 + _DIGEST + X_WING.enc_bytes + bucket(content, REQUEST_BUCKET) + _TAG


# ----------------------------------------------------------------------------------------------------------- suites


@lru_cache(maxsize=64)  # reading an ML-KEM key takes a third of the time of sealing to it
def x_wing_key(key: bytes) -> hpke.MLKEM768X25519PublicKey:
    """A statement's X-Wing key, to encrypt to. ValueError for what is none."""
    mlkem, x25519 = key[:-_KEY], key[-_KEY:]
    return hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(mlkem), X25519PublicKey.from_public_bytes(x25519)
    )


def _encrypt(suite: Suite, keys: Keys, content: bytes, info: bytes) -> bytes:
    try:
        if suite is X_WING:
            return HPKE_X_WING.encrypt(content, x_wing_key(keys.sealing_x_wing), info)
        return _HPKE_X25519.encrypt(content, X25519PublicKey.from_public_bytes(keys.sealing_x25519), info)
    except ValueError as exc:
        raise MalformedError(
            Check.SEALED_KEY, f"the statement's {suite.name} key is no such key ({exc})"
        ) from exc


def _decrypt(envelope: Envelope, keys: SealingKeys) -> bytes:
    prefix = _prefix(envelope.suite, envelope.statement)
    if envelope.suite is TICKET:
        enc, ciphertext = envelope.enc, envelope.ciphertext
        return sealed_ticket.decrypt(keys.tickets, envelope.statement, prefix, enc, ciphertext)
    sealed = envelope.enc + envelope.ciphertext
    if envelope.suite is X_WING:
        key = hpke.MLKEM768X25519PrivateKey(keys.mlkem, keys.mlkem_x25519)
        return HPKE_X_WING.decrypt(sealed, key, _INFO + prefix)
    return _HPKE_X25519.decrypt(sealed, keys.x25519, _INFO + prefix)
