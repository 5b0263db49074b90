"""Minisign's files: a reviewer's public key, and a signature over a file that lies beside it.

key        untrusted comment: …          base64( "Ed" ‖ key id (8) ‖ Ed25519 key (32) )
signature  untrusted comment: …          base64( "ED" or "Ed" ‖ key id (8) ‖ signature (64) )
           trusted comment: …            base64( signature over the 64 bytes above ‖ the trusted comment )

"ED" signs the BLAKE2b-512 of the file, "Ed", which minisign wrote before 0.10, the file itself. As minisign does, this
wants both signatures and the key's own id. The untrusted comments are read past.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from hashlib import blake2b

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

MAX_SIGNATURE_BYTES = 16 * 1024
_UNTRUSTED, _TRUSTED = b"untrusted comment: ", b"trusted comment: "
_KEY_SIZE, _SIGNATURE_SIZE, _GLOBAL_SIZE = 42, 74, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class MinisignKey:
    """A public key, and the id by which its signatures name it."""

    id: bytes
    key: Ed25519PublicKey


def parse_key(text: str) -> MinisignKey:
    """What `minisign.pub` holds, or the second of its two lines alone, as `minisign -P` takes it."""
    lines = text.strip().encode().splitlines()
    if len(lines) > 1 and lines[0].startswith(_UNTRUSTED.rstrip()):
        del lines[0]
    if len(lines) != 1:
        raise _malformed("a public key is one line of base64, with or without its comment")
    data = _base64(lines[0], _KEY_SIZE, "public key")
    if data[:2] != b"Ed":
        raise _malformed(f"expected a public key of the algorithm Ed, found {data[:2]!r}")
    return MinisignKey(id=data[2:10], key=Ed25519PublicKey.from_public_bytes(data[10:]))


def verify_minisign(signature: bytes, key: MinisignKey, message: bytes) -> str:
    """The trusted comment of a signature that this key has made over exactly these bytes."""
    algorithm, key_id, signed, comment, over_comment = _parse_signature(signature)
    if key_id != key.id:
        raise _refused(f"signed with the key {_id(key_id)}, expected {_id(key.id)}")
    content = blake2b(message, digest_size=64).digest() if algorithm == b"ED" else message
    for what, one, over in (
        ("the file", signed, content),
        ("the trusted comment", over_comment, signed + comment),
    ):
        try:
            key.key.verify(one, over)
        except InvalidSignature:
            raise _refused(f"the signature over {what} does not verify") from None
    return comment.decode("utf-8", "replace")


def _parse_signature(data: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Algorithm, key id, signature, trusted comment, and the signature over both."""
    if len(data) > MAX_SIGNATURE_BYTES:
        raise _malformed(f"a signature of over {MAX_SIGNATURE_BYTES} bytes")
    match [line.removesuffix(b"\r") for line in data.removesuffix(b"\n").split(b"\n")]:
        case [untrusted, first, trusted, second] if untrusted.startswith(_UNTRUSTED) and trusted.startswith(
            _TRUSTED
        ):
            one = _base64(first, _SIGNATURE_SIZE, "signature")
        case _:
            raise _malformed("a signature is four lines, the first and the third of them comments")
    if one[:2] not in {b"ED", b"Ed"}:
        raise _malformed(f"expected the algorithm ED or Ed, found {one[:2]!r}")
    over_comment = _base64(second, _GLOBAL_SIZE, "signature of the comment")
    return one[:2], one[2:10], one[10:], trusted.removeprefix(_TRUSTED), over_comment


def _base64(line: bytes, size: int, what: str) -> bytes:
    try:
        data = b64decode(line, validate=True)
    except ValueError:
        data = b""
    if len(data) != size or b64encode(data) != line:  # libsodium, too, takes each value in one form alone
        raise _malformed(f"the {what} is not {size} bytes of base64")
    return data


def _id(key_id: bytes) -> str:
    """As minisign prints it."""
    return key_id[::-1].hex().upper()


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.REFERENCES_FORMAT, f"minisign: {detail}")


def _refused(detail: str) -> VerificationError:
    return VerificationError(Check.REFERENCES_SIGNATURE, f"minisign: {detail}")
