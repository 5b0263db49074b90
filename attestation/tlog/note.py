"""Signed notes (c2sp.org/signed-note): a text, and lines with signatures by named keys. Two kinds of key are known:
Ed25519 over the text (0x01), which logs sign with, and Ed25519 with a time (0x04), with which witnesses cosign
(c2sp.org/tlog-cosignature). Signatures of other keys are nobody's business, and skipped."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 100
_DASH = "\u2014 "
_ID_BYTES, _KEY_BYTES, _TIME_BYTES = 4, 32, 8


class KeyKind(IntEnum):
    """The signature type's identifier byte."""

    LOG = 0x01
    WITNESS = 0x04


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A public key with its name, as `parse_verifier_key` reads it: `<name>+<id>+<base64>`."""

    name: str
    key: bytes
    kind: KeyKind = KeyKind.LOG

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + bytes([self.kind]) + self.key).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{b64encode(bytes([self.kind]) + self.key).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line."""

    name: str
    id: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A text with signatures that nobody has verified yet."""

    text: str
    signatures: tuple[NoteSignature, ...]


def parse_verifier_key(text: str) -> VerifierKey:
    """Read a verifier key; its id must be its own."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    data = decode_base64(encoded, "the verifier key")
    if not _is_name(name) or len(data) != 1 + _KEY_BYTES or data[0] not in set(KeyKind):
        raise _malformed("a verifier key is <name>+<id>+<base64 of 0x01 or 0x04 and 32 bytes>")
    key = VerifierKey(name=name, key=data[1:], kind=KeyKind(data[0]))
    if key_id != key.id.hex():
        raise _malformed(f"the verifier key's id is {key.id.hex()}, found {key_id!r}")
    return key


def parse_note(data: bytes) -> Note:
    """Read a signed note. Judges no signature."""
    if len(data) > MAX_NOTE_BYTES:
        raise _malformed(f"a note of {len(data)} bytes, the limit is {MAX_NOTE_BYTES}")
    try:
        whole = data.decode()
    except UnicodeDecodeError as exc:
        raise _malformed("a note must be UTF-8") from exc
    if any(c < " " and c != "\n" for c in whole):
        raise _malformed("a note has no control characters but newlines")
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines.endswith("\n"):
        raise _malformed("a note is a text, an empty line and signature lines")
    signatures = lines[:-1].split("\n")
    if len(signatures) > MAX_SIGNATURES:
        raise _malformed(f"{len(signatures)} signatures, the limit is {MAX_SIGNATURES}")
    return Note(text=text + "\n", signatures=tuple(map(_parse_signature, signatures)))


def dump_note(note: Note) -> bytes:
    """The note as bytes; `parse_note` reads them."""
    lines = [f"{_DASH}{s.name} {b64encode(s.id + s.signature).decode()}\n" for s in note.signatures]
    return (note.text + "\n" + "".join(lines)).encode()


def sign_text(text: str, name: str, private: Ed25519PrivateKey) -> NoteSignature:
    """A log's signature over a note's text."""
    key = VerifierKey(name=name, key=private.public_key().public_bytes_raw())
    return NoteSignature(name=name, id=key.id, signature=private.sign(text.encode()))


def verify_note(note: Note, key: VerifierKey, check: Check = Check.LOG_CHECKPOINT) -> int | None:
    """`key` signed the note's text, in every line that is its own. The time, where a witness signed one."""
    found = [s for s in note.signatures if (s.name, s.id) == (key.name, key.id)]
    if not found:
        raise VerificationError(
            check,
            f"not signed by {key.name} with the key {key.key.hex()[:16]}…",
            advice="The checkpoint comes from another log, or from an earlier boot of this one",
        )
    times = [_verify(note.text, s.signature, key, check) for s in found]
    return times[0]


def _verify(text: str, signature: bytes, key: VerifierKey, check: Check) -> int | None:
    time, message = None, text.encode()
    if key.kind is KeyKind.WITNESS:
        time = int.from_bytes(signature[:_TIME_BYTES])
        message = f"cosignature/v1\ntime {time}\n".encode() + message
        signature = signature[_TIME_BYTES:]
    try:
        Ed25519PublicKey.from_public_bytes(key.key).verify(signature, message)
    except (InvalidSignature, ValueError) as exc:
        raise VerificationError(
            check,
            f"the signature of {key.name} does not fit the text",
            advice="The checkpoint was altered; do not rely on it",
        ) from exc
    return time


def decode_base64(text: str, what: str) -> bytes:
    """Standard base64 with padding, one text for one value."""
    try:
        data = b64decode(text.encode("ascii"), validate=True)
    except ValueError as exc:
        raise _malformed(f"{what} is not base64") from exc
    if b64encode(data).decode() != text:
        raise _malformed(f"{what} is not canonical base64")
    return data


def _parse_signature(line: str) -> NoteSignature:
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space or not _is_name(name):
        raise _malformed("a signature line is an em dash, a name and base64, with spaces between")
    data = decode_base64(encoded, "a signature")
    if len(data) <= _ID_BYTES:
        raise _malformed("a signature is four bytes of a key's id, and the signature")
    return NoteSignature(name=name, id=data[:_ID_BYTES], signature=data[_ID_BYTES:])


def _is_name(name: str) -> bool:
    return bool(name) and not any(c.isspace() or c == "+" for c in name)


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.LOG_FORMAT, detail)
