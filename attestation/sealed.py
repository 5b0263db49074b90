"""Sealed exchanges: a whole HTTP request encrypted to the enclave, and its answer encrypted back, chunk by chunk.

Both directions stand side by side, without I/O. HPKE, AES-GCM and HKDF are `cryptography`'s; only the framing is ours. A
request is bound to the statement that names its key; an answer is bound to its request; a chunk to its place, and the last
one is marked, so that neither can be moved, swapped, repeated or cut unseen. `docs/protocol.md` §7 has the bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation._reader import Reader
from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.sealed_head import (
    RequestHead,
    ResponseHead,
    dump_head,
    parse_request_head,
    parse_response_head,
)

PATH = "/sealed"
REQUEST_TYPE = "application/vnd.attested-inference.sealed-request"
ANSWER_TYPE = "application/vnd.attested-inference.sealed-answer"
VERSION = 1
MAX_HEAD_BYTES = 64 * 1024
MAX_CHUNK_BYTES = 1024 * 1024  # of a chunk's plaintext, with its padding
MAX_CLOCK_SKEW = 300  # seconds between the time in a request and the enclave's clock
SECRET_BYTES = RANDOM_BYTES = 32
REQUEST_BUCKET, CHUNK_BUCKET = 1024, 512  # the smallest padded lengths
_REQUEST_INFO = b"attested-inference/sealed-request/v1\x00"
_ANSWER_INFO = b"attested-inference/sealed-answer/v1"
_DIGEST, _KEY, _TAG, _NONCE, _LENGTH = 32, 32, 16, 12, 4
_ROOM, _MAX_SEALED = MAX_CHUNK_BYTES - _LENGTH, MAX_CHUNK_BYTES + _TAG
_BUCKETS_END = 64 * 1024
_LAST, _MORE = b"final", b""  # what a chunk authenticates beside its content, as in chunked OHTTP §6.2
_LOOK_AROUND = 64  # places of an answer that a misplaced chunk is tried at, to say what is wrong


@dataclass(frozen=True, slots=True)
class Suite:
    """How a request is encrypted: HPKE's KEM, KDF and AEAD by their numbers (RFC 9180 §7)."""

    name: Literal["x-wing", "x25519"]
    number: bytes
    kem: hpke.KEM

    @property
    def scheme(self) -> hpke.Suite:
        return hpke.Suite(self.kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


X_WING = Suite("x-wing", bytes.fromhex("647a00010002"), hpke.KEM.MLKEM768_X25519)
X25519 = Suite("x25519", bytes.fromhex("002000010002"), hpke.KEM.X25519)
SUITES = {suite.number: suite for suite in (X_WING, X25519)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingKeys:
    """The private halves: one key for each suite, which share nothing."""

    mlkem: MLKEM768PrivateKey  # X-Wing is ML-KEM-768 and X25519 together
    mlkem_x25519: X25519PrivateKey
    x25519: X25519PrivateKey

    @classmethod
    def generate(cls) -> SealingKeys:
        return cls(
            mlkem=MLKEM768PrivateKey.generate(),
            mlkem_x25519=X25519PrivateKey.generate(),
            x25519=X25519PrivateKey.generate(),
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
    secret = secrets.token_bytes(SECRET_BYTES)
    content = secret + int(now.timestamp()).to_bytes(8, "big") + _prefixed(dump_head(head)) + _prefixed(body)
    prefix = bytes([VERSION]) + suite.number + statement
    sealed = _encrypt(suite, keys, _padded(content, REQUEST_BUCKET), _REQUEST_INFO + prefix)
    return prefix + sealed, AnswerOpener(secret, sealed[: suite.kem.enc_length()])


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
    enc = reader.take(suite.kem.enc_length(), "encapsulated key")
    if reader.remaining < _TAG:
        raise reader.error("there is no ciphertext")
    return Envelope(
        suite=suite, statement=statement, enc=enc, ciphertext=reader.take(reader.remaining, "ciphertext")
    )


def open_request(envelope: Envelope, keys: SealingKeys) -> Opened:
    """Decrypt with the keys of the statement that the envelope names. Whether it is new is for the caller to say."""
    suite = envelope.suite
    key = hpke.MLKEM768X25519PrivateKey(keys.mlkem, keys.mlkem_x25519) if suite is X_WING else keys.x25519
    info = _REQUEST_INFO + bytes([VERSION]) + suite.number + envelope.statement
    try:
        content = suite.scheme.decrypt(envelope.enc + envelope.ciphertext, key, info)
    except (InvalidTag, ValueError) as exc:
        raise VerificationError(Check.SEALED_OPEN, "not sealed to this key, or altered on the way") from exc
    if len(content) < SECRET_BYTES:
        raise MalformedError(Check.SEALED_FORMAT, "the content holds no response secret")
    return Opened(enc=envelope.enc, secret=content[:SECRET_BYTES], content=content[SECRET_BYTES:])


def parse_message(content: bytes) -> Message:
    """Read what was inside: all of it, with nothing but zeros after the body."""
    reader = Reader(content, Check.SEALED_FORMAT, "sealed request's content")
    time = _uint(reader, 8, "time")
    head = reader.take(_uint(reader, _LENGTH, "length"), "head")
    body = reader.take(_uint(reader, _LENGTH, "length"), "body")
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
    content = SECRET_BYTES + 8 + _LENGTH + MAX_HEAD_BYTES + _LENGTH + body
    return 1 + 6 + _DIGEST + X_WING.kem.enc_length() + _bucket(content, REQUEST_BUCKET) + _TAG


# -------------------------------------------------------------------------------------------------------- answers


class _Chunks:
    """What both ends derive alike: the key of one answer, and the nonce of each place in it."""

    def __init__(self, secret: bytes, enc: bytes, random: bytes) -> None:
        kdf = HKDF(hashes.SHA256(), length=_KEY + _NONCE, salt=enc + random, info=_ANSWER_INFO)
        derived = kdf.derive(secret)
        self._cipher, self._base = AESGCM(derived[:_KEY]), int.from_bytes(derived[_KEY:], "big")
        self.next = 0

    def nonce(self, place: int) -> bytes:
        return (self._base ^ place).to_bytes(_NONCE, "big")

    def encrypt(self, data: bytes, last: bool) -> bytes:
        content = _padded(_prefixed(data), CHUNK_BUCKET)
        sealed = self._cipher.encrypt(self.nonce(self.next), content, _LAST if last else _MORE)
        self.next += 1
        return bytes([last]) + len(sealed).to_bytes(_LENGTH, "big") + sealed

    def decrypt(self, sealed: bytes, last: bool) -> bytes:
        nonce = (self._base ^ self.next).to_bytes(_NONCE, "big")
        try:
            content = self._cipher.decrypt(nonce, sealed, _LAST if last else _MORE)
        except InvalidTag:
            raise self._why(sealed, last) from None
        self.next += 1
        end = _LENGTH + int.from_bytes(content[:_LENGTH], "big")
        if _LENGTH <= end <= len(content) and content.count(0, end) == len(content) - end:
            return content[_LENGTH:end]
        reader = Reader(content, Check.SEALED_FORMAT, "chunk")  # says what is wrong with it
        data = reader.take(_uint(reader, _LENGTH, "length"), "data")
        reader.end(padding=True)
        return data

    def _try(self, sealed: bytes, place: int, last: bool) -> bytes | None:
        try:
            return self._cipher.decrypt(self.nonce(place), sealed, _LAST if last else _MORE)
        except InvalidTag:
            return None

    def _why(self, sealed: bytes, last: bool) -> VerificationError:
        """Only to say what is wrong; nothing of a chunk that does not fit is given out."""
        if self._try(sealed, self.next, not last) is not None:
            where = (
                "is marked as the last one, and is not" if last else "is the last one, and is not marked so"
            )
            return VerificationError(Check.SEALED_TRUNCATED, f"chunk {self.next} {where}", advice=_DO_NOT_USE)
        for place in range(max(0, self.next - _LOOK_AROUND), self.next + _LOOK_AROUND):
            if self._try(sealed, place, last) is not None:
                detail = f"expected chunk {self.next} of the answer, found chunk {place}"
                return VerificationError(Check.SEALED_ORDER, detail, advice=_DO_NOT_USE)
        detail = f"chunk {self.next} was altered, or belongs to another answer"
        return VerificationError(Check.SEALED_OPEN, detail, advice=_DO_NOT_USE)


class AnswerSealer:
    """Encrypts one answer. The first piece carries the head; the one that is said to be the last ends it."""

    def __init__(self, opened: Opened, *, random: bytes | None = None) -> None:
        self._random = random or secrets.token_bytes(RANDOM_BYTES)
        self._chunks = _Chunks(opened.secret, opened.enc, self._random)

    def seal(self, data: bytes, *, head: ResponseHead | None = None, last: bool = False) -> bytes:
        """The bytes to send for `data`, now. `head` comes with the first piece, and with no other."""
        if (head is None) != bool(self._chunks.next):
            raise ValueError("the head belongs to the first piece, and to no other")
        start = b"" if head is None else self._random
        if head is not None:
            data = _prefixed(dump_head(head)) + data
        if len(data) <= _ROOM:  # one chunk, as almost always
            return start + self._chunks.encrypt(data, last)
        return start + b"".join([self._chunks.encrypt(part, end and last) for part, end in _parts(data)])


class AnswerOpener:
    """Decrypts one answer as it arrives: each chunk when it is whole, and nothing that does not belong where it stands."""

    def __init__(self, secret: bytes, enc: bytes) -> None:
        self._secret, self._enc = secret, enc
        self._chunks: _Chunks | None = None
        self._within: _Chunks | None = None  # the same, after the head and before the last chunk
        self._tail = b""
        self._ended = False
        self.head: ResponseHead | None = None  # there once the first chunk is

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of one read; give out the body in the chunks that are whole."""
        size = len(data) - 5
        if (
            self._within
            and not self._tail
            and _TAG <= size <= _MAX_SEALED
            and data[:5] == size.to_bytes(5, "big")
        ):
            return self._within.decrypt(data[5:], False)  # one chunk and nothing else, as nearly every read
        self._tail += data
        if self._chunks is None:
            if len(self._tail) < RANDOM_BYTES:
                return b""
            self._chunks = _Chunks(self._secret, self._enc, self._tail[:RANDOM_BYTES])
            self._tail = self._tail[RANDOM_BYTES:]
        return b"".join([self._take(part, last, self._chunks) for part, last in self._whole()])

    def end(self) -> None:
        """Nothing more will come: the last chunk must have."""
        if not self._ended:
            raise self.truncated()

    @staticmethod
    def truncated() -> VerificationError:
        return VerificationError(
            Check.SEALED_TRUNCATED,
            "the sealed answer ended before its last chunk",
            advice="The connection was cut, or the end of the answer was taken away; ask again",
        )

    def _whole(self) -> Iterator[tuple[bytes, bool]]:
        while self._tail:
            if self._ended:
                raise VerificationError(
                    Check.SEALED_ORDER,
                    "bytes follow the chunk that is marked as the last",
                    advice=_DO_NOT_USE,
                )
            last, size = self._tail[0], int.from_bytes(self._tail[1:5], "big")
            if last > 1 or (len(self._tail) >= 5 and not _TAG <= size <= _MAX_SEALED):
                raise MalformedError(Check.SEALED_FORMAT, "expected the start of a chunk")
            if len(self._tail) < 5 + max(size, _TAG):
                return
            part, self._tail = self._tail[5 : 5 + size], self._tail[5 + size :]
            self._ended = bool(last)
            if last:
                self._within = None
            yield part, bool(last)

    def _take(self, sealed: bytes, last: bool, chunks: _Chunks) -> bytes:
        data = chunks.decrypt(sealed, last)
        if self.head is not None:
            return data
        reader = Reader(data, Check.SEALED_FORMAT, "sealed answer")
        head = reader.take(_uint(reader, _LENGTH, "length"), "head")
        self.head = parse_response_head(head, limit=MAX_HEAD_BYTES)
        self._within = None if self._ended else chunks
        return reader.take(reader.remaining, "body")


# --------------------------------------------------------------------------------------------------------- pieces

_DO_NOT_USE = "The answer was altered on the way, or belongs to another request; do not use it"


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
            return suite.scheme.encrypt(content, x_wing_key(keys.sealing_x_wing), info)
        return suite.scheme.encrypt(content, X25519PublicKey.from_public_bytes(keys.sealing_x25519), info)
    except ValueError as exc:
        raise MalformedError(
            Check.SEALED_KEY, f"the statement's {suite.name} key is no such key ({exc})"
        ) from exc


def _bucket(size: int, smallest: int) -> int:
    """The padded length: a power of two, then a multiple of 64 KiB."""
    if size > _BUCKETS_END:
        return -(-size // _BUCKETS_END) * _BUCKETS_END
    return max(smallest, 1 << (size - 1).bit_length())


def _padded(content: bytes, smallest: int) -> bytes:
    return content.ljust(_bucket(len(content), smallest), b"\x00")


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(_LENGTH, "big") + data


def _parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Pieces that fit into a chunk, and whether each is the end."""
    for at in range(0, len(data), _ROOM):
        yield data[at : at + _ROOM], at + _ROOM >= len(data)


def _uint(reader: Reader, size: int, name: str) -> int:
    return int.from_bytes(reader.take(size, name), "big")
