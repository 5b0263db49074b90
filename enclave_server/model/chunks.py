"""An encrypted pack's index and files, as chunks: each of them under a key of its own. docs/models.md has the layout."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from enclave_server.model.manifest import ModelError, ModelProblem

CHUNK = 1024 * 1024  # of plaintext; the last of a file is shorter
KEY_BYTES = 32
MAGIC = b"attested-pack/1\n"
SALT_BYTES = 32
HEADER = len(MAGIC) + SALT_BYTES + 8
_TAG = 16
_INFO = b"attested-inference/model-pack/v1\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The index, or one file: what its key is derived from, where it begins in the pack, how long it is in plain."""

    label: bytes
    offset: int
    size: int

    @property
    def chunks(self) -> int:
        return -(-self.size // CHUNK)

    @property
    def end(self) -> int:
        return self.offset + self.size + self.chunks * _TAG

    @property
    def name(self) -> str:
        return self.label.partition(b"\x00")[2].decode() or "the index"


def encrypt(out: BinaryIO, plain: Iterable[bytes], part: Part, key: bytes, header: bytes) -> None:
    cipher = _cipher(key, header, part)
    out.writelines(
        cipher.encrypt(number.to_bytes(12, "big"), chunk, header)
        for number, chunk in enumerate(piece for text in plain for piece in _cut(text))
    )


def _cut(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), CHUNK):
        yield text[start : start + CHUNK]


class AlteredError(ModelError):
    """A chunk does not open."""


def decrypted(file: int, part: Part, key: bytes, header: bytes) -> Iterator[bytes]:
    cipher, offset = _cipher(key, header, part), part.offset
    for number in range(part.chunks):
        size = min(CHUNK, part.size - number * CHUNK) + _TAG
        data = os.pread(file, size, offset)
        if len(data) != size:
            raise bad_pack(f"it ends in {part.name}", "It was cut: copy it again")
        try:
            yield cipher.decrypt(number.to_bytes(12, "big"), data, header)
        except InvalidTag:
            raise AlteredError(
                ModelProblem.PACK,
                f"chunk {number} of {part.name} is not the one that was encrypted there",
                advice="It was altered, reordered or mixed with another pack: copy it again",
            ) from None
        offset += size


def _cipher(key: bytes, header: bytes, part: Part) -> AESGCM:
    salt = header[len(MAGIC) : len(MAGIC) + SALT_BYTES]
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO + part.label).derive(key))


def bad_pack(detail: str, advice: str) -> ModelError:
    return ModelError(ModelProblem.PACK, detail, advice=advice)
