"""The answer to a sealed request: encrypted chunk by chunk as it is made, and opened as it arrives. No I/O.

Keys come from the secret inside the request and from a random value of the enclave, so none serves twice. A chunk is bound
to its place, and the last one is marked: none can be moved, repeated or cut unseen. `docs/protocol.md` §7 has the bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation._lengths import LENGTH, padded, prefixed, take_prefixed
from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.sealed_head import MAX_HEAD_BYTES, ResponseHead, dump_head, parse_response_head

ANSWER_TYPE = "application/vnd.attested-inference.sealed-answer"
MAX_CHUNK_BYTES = 1024 * 1024  # of a chunk's plaintext, with its padding
RANDOM_BYTES = 32
CHUNK_BUCKET = 512  # the smallest padded length
_INFO = b"attested-inference/sealed-answer/v1"
_KEY, _TAG, _NONCE, _FRAME = 32, 16, 12, 5
_ROOM, _MAX_SEALED = MAX_CHUNK_BYTES - LENGTH, MAX_CHUNK_BYTES + _TAG
# what a chunk authenticates beside its content, as in chunked OHTTP §6.2; nothing costs OpenSSL less than an empty text
_LAST, _MORE = b"final", None
_ZEROS = bytes(64 * 1024)  # the longest padding that is written
_NO_FRAME = b"\xff"  # of no chunk
_LOOK_AROUND = 64  # places of an answer that a misplaced chunk is tried at, to say what is wrong
_DO_NOT_USE = "The answer was altered on the way, or belongs to another request; do not use it"


class _Chunks:
    """What both ends derive alike: the key of one answer, and the nonce of each place in it."""

    def __init__(self, secret: bytes, enc: bytes, random: bytes) -> None:
        kdf = HKDF(hashes.SHA256(), length=_KEY + _NONCE, salt=enc + random, info=_INFO)
        derived = kdf.derive(secret)
        self._cipher, self._base = AESGCM(derived[:_KEY]), int.from_bytes(derived[_KEY:], "big")
        self.next = 0

    def _nonce(self, place: int) -> bytes:
        return (self._base ^ place).to_bytes(_NONCE, "big")

    def encrypt(self, data: bytes, last: bool) -> bytes:
        content = padded(prefixed(data), CHUNK_BUCKET)
        sealed = self._cipher.encrypt(self._nonce(self.next), content, _LAST if last else _MORE)
        self.next += 1
        return (last << 32 | len(sealed)).to_bytes(_FRAME, "big") + sealed

    def decrypt(self, sealed: bytes, last: bool) -> bytes:
        try:
            nonce = (self._base ^ self.next).to_bytes(_NONCE, "big")
            content = self._cipher.decrypt(nonce, sealed, _LAST if last else _MORE)
        except InvalidTag:
            raise self._why(sealed, last) from None
        self.next += 1
        end = LENGTH + int.from_bytes(content[:LENGTH], "big")
        if end <= len(content) and _ZEROS.startswith(content[end:]):
            return content[LENGTH:end]
        reader = Reader(content, Check.SEALED_FORMAT, "chunk")  # says what is wrong with it
        data = take_prefixed(reader, "data")
        reader.end(padding=True)
        return data

    def _try(self, sealed: bytes, place: int, last: bool) -> bytes | None:
        try:
            return self._cipher.decrypt(self._nonce(place), sealed, _LAST if last else _MORE)
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

    def __init__(self, secret: bytes, enc: bytes, *, random: bytes | None = None) -> None:
        self._random = random or secrets.token_bytes(RANDOM_BYTES)
        self._chunks = _Chunks(secret, enc, self._random)

    def seal(self, data: bytes, *, head: ResponseHead | None = None, last: bool = False) -> bytes:
        """The bytes to send for `data`, now. `head` comes with the first piece, and with no other."""
        if (head is None) != bool(self._chunks.next):
            raise ValueError("the head belongs to the first piece, and to no other")
        start = b"" if head is None else self._random
        if head is not None:
            data = prefixed(dump_head(head)) + data
        if len(data) <= _ROOM:  # one chunk, as almost always
            return start + self._chunks.encrypt(data, last)
        return start + b"".join([self._chunks.encrypt(part, end and last) for part, end in _parts(data)])


class AnswerOpener:
    """Decrypts one answer as it arrives: each chunk when it is whole, and nothing that does not belong where it stands."""

    def __init__(self, secret: bytes, enc: bytes) -> None:
        self._secret, self._enc = secret, enc
        self._chunks: _Chunks | None = None
        self._within: _Chunks | None = None  # the same, after the head and before the last chunk
        self._tail = bytearray()  # of a chunk that is not whole: it grows without a copy for every read …
        self._needed = 0  # … until so many bytes are there
        self._length = 0  # of the last read …
        self._frame = _NO_FRAME  # … and what it begins with if it is one chunk
        self._ended = False
        self.head: ResponseHead | None = None  # there once the first chunk is

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of one read; give out the body in the chunks that are whole."""
        if self._within is not None and not self._tail:
            if len(data) != self._length:
                self._length, self._frame = len(data), _frame_of_one(len(data))
            if data.startswith(self._frame):
                return self._within.decrypt(data[_FRAME:], False)  # one chunk, as nearly every read
        if self._tail:
            self._tail += data
            if len(self._tail) < self._needed:
                return b""
            data, self._tail = bytes(self._tail), bytearray()
        if self._chunks is None:
            if len(data) < RANDOM_BYTES:
                self._tail, self._needed = bytearray(data), RANDOM_BYTES
                return b""
            self._chunks = _Chunks(self._secret, self._enc, data[:RANDOM_BYTES])
            data = data[RANDOM_BYTES:]
        return b"".join([self._take(part, last, self._chunks) for part, last in self._whole(data)])

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

    def _whole(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        at = 0
        while at < len(data):
            if self._ended:
                raise VerificationError(
                    Check.SEALED_ORDER,
                    "bytes follow the chunk that is marked as the last",
                    advice=_DO_NOT_USE,
                )
            start = at + _FRAME
            last, size = data[at], int.from_bytes(data[at + 1 : start], "big")
            if last > 1 or (len(data) >= start and not _TAG <= size <= _MAX_SEALED):
                self._tail, self._needed = bytearray(data[at:]), 0  # whatever comes after it
                raise MalformedError(Check.SEALED_FORMAT, "expected the start of a chunk")
            end = start + size
            if len(data) < max(end, start + _TAG):
                self._tail = bytearray(data[at:])
                self._needed = end - at if len(data) >= start else _FRAME
                return
            self._ended = bool(last)
            if last:
                self._within = None
            yield data[start:end], bool(last)
            at = end

    def _take(self, sealed: bytes, last: bool, chunks: _Chunks) -> bytes:
        data = chunks.decrypt(sealed, last)
        if self.head is not None:
            return data
        reader = Reader(data, Check.SEALED_FORMAT, "sealed answer")
        self.head = parse_response_head(take_prefixed(reader, "head"), limit=MAX_HEAD_BYTES)
        self._within = None if self._ended else chunks
        return reader.take(reader.remaining, "body")


def _frame_of_one(length: int) -> bytes:
    """What so many bytes begin with if they are one chunk, and not the last."""
    size = length - _FRAME
    return size.to_bytes(_FRAME, "big") if _TAG <= size <= _MAX_SEALED else _NO_FRAME


def _parts(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """Pieces that fit into a chunk, and whether each is the end."""
    for at in range(0, len(data), _ROOM):
        yield data[at : at + _ROOM], at + _ROOM >= len(data)
