"""Secrets from an enclave's owner: signed with the owner's key, and sealed to one enclave that the owner has verified.

Both directions stand side by side, without I/O. The signature says who gave them, for which statement and when; the seal
keeps them from everybody but that enclave; their digest, which later stands in the statement, is salted with what only the
owner can make, so that a guess at a secret cannot be tried against it. `docs/protocol.md` §13 has the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey

from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import parse_json_object
from attestation._reader import Reader
from attestation.binding import Keys
from attestation.bundle import parse_bytes, parse_members
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.sealed import HPKE_X_WING, X_WING, SealingKeys, x_wing_key

PATH = "/.well-known/secrets"
MEDIA_TYPE = "application/vnd.attested-inference.sealed-secrets"
TYPE = "attested-secrets+jwt"
PURPOSE = "attested-inference/secrets"
VERSION = 1
MAX_SECRETS_BYTES = 32 * 1024  # of all values together
MAX_MESSAGE_BYTES = 128 * 1024
MAX_CLOCK_SKEW = 300  # seconds between the owner's clock and the enclave's
_HEADER = b64url_encode(f'{{"alg":"EdDSA","typ":"{TYPE}"}}'.encode())
_INFO = b"attested-inference/sealed-secrets/v1\x00"
_DIGEST = b"attested-inference/secrets/v1\x00"
_SALT = b"attested-inference/secrets-salt/v1\x00"
_HASH, _TAG, _BUCKET = 32, 16, 4096  # lengths; every message is padded to a multiple of the last
_FORMAT = Check.SECRET_FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedSecrets:
    """As they are on the wire: read, and not opened."""

    statement: bytes  # the digest of the statement whose key they are sealed to
    ciphertext: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerSecrets:
    """What an owner gives to one enclave."""

    statement: bytes
    time: int  # Unix seconds, by the owner's clock
    salt: bytes = field(repr=False)
    values: Mapping[str, bytes] = field(repr=False)

    def digest(self) -> bytes:
        """What the statement shows of them; nothing can be guessed from it without the salt."""
        return sha256(_DIGEST + self.salt + _canonical(self.values)).digest()


def seal_secrets(
    values: Mapping[str, bytes], *, owner: Ed25519PrivateKey, keys: Keys, statement: bytes, now: datetime
) -> tuple[bytes, bytes]:
    """The message for the enclave whose verified statement has `keys` and the digest `statement`; and the secrets' digest."""
    if sum(map(len, values.values())) > MAX_SECRETS_BYTES:
        raise MalformedError(_FORMAT, f"more than {MAX_SECRETS_BYTES} bytes of secrets")
    given = OwnerSecrets(
        statement=statement, time=int(now.timestamp()), salt=_salt(owner, values), values=values
    )
    claims = {
        "v": VERSION,
        "purpose": PURPOSE,
        "statement": given.statement.hex(),
        "time": given.time,
        "salt": b64url_encode(given.salt),
        "secrets": {name: b64url_encode(value) for name, value in values.items()},
    }
    signed = f"{_HEADER}.{b64url_encode(json.dumps(claims, separators=(',', ':')).encode())}"
    token = f"{signed}.{b64url_encode(owner.sign(signed.encode()))}".encode()
    prefix = bytes([VERSION]) + X_WING.number + statement
    padded = token.ljust(-(-len(token) // _BUCKET) * _BUCKET, b"\x00")
    sealed = HPKE_X_WING.encrypt(padded, x_wing_key(keys.sealing_x_wing), _INFO + prefix)
    return prefix + sealed, given.digest()


def parse_sealed_secrets(data: bytes) -> SealedSecrets:
    """Read a message. Opens nothing."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise MalformedError(_FORMAT, f"{len(data)} bytes, the limit is {MAX_MESSAGE_BYTES}")
    reader = Reader(data, _FORMAT, "sealed secrets")
    reader.expect(bytes([VERSION]), "version")
    reader.expect(X_WING.number, "suite")
    statement = reader.take(_HASH, "statement digest")
    if reader.remaining < X_WING.enc_bytes + _TAG:
        raise reader.error("there is no ciphertext")
    return SealedSecrets(statement=statement, ciphertext=reader.take(reader.remaining, "ciphertext"))


def open_secrets(sealed: SealedSecrets, keys: SealingKeys) -> bytes:
    """Decrypt with the keys of the statement that the message names. Who signed it is still to be verified."""
    info = _INFO + bytes([VERSION]) + X_WING.number + sealed.statement
    key = MLKEM768X25519PrivateKey(keys.mlkem, keys.mlkem_x25519)
    try:
        return HPKE_X_WING.decrypt(sealed.ciphertext, key, info).rstrip(b"\x00")
    except (InvalidTag, ValueError) as exc:
        raise VerificationError(Check.SEALED_OPEN, "not sealed to this key, or altered on the way") from exc


def verify_secrets(token: bytes, owner: Ed25519PublicKey) -> OwnerSecrets:
    """What `owner` signed. For which enclave, when and what is still to be checked."""
    parts = token.split(b".")
    if len(parts) != 3 or parts[0] != _HEADER.encode():
        raise MalformedError(_FORMAT, f"expected a compact JWS of type {TYPE}, signed with EdDSA")
    payload, signature = (_decoded(part) for part in parts[1:])
    try:
        owner.verify(signature, b".".join(parts[:2]))
    except InvalidSignature as exc:
        raise VerificationError(
            Check.SECRET_SIGNATURE,
            "not signed by the owner's key that the configuration names",
            advice="Sign with the private key of `owner_key`, or start the gateway with the key that you have",
        ) from exc
    return _parse_claims(parse_json_object(payload, _FORMAT, "secrets", limit=MAX_MESSAGE_BYTES))


def check_secrets(secrets: OwnerSecrets, *, statement: bytes, names: Collection[str], now: datetime) -> None:
    """They are for this enclave, of now, and exactly those that it waits for."""
    if secrets.statement != statement:
        raise VerificationError(
            Check.SECRET_STATEMENT,
            f"signed for the statement {secrets.statement.hex()[:16]}…, sealed to {statement.hex()[:16]}…",
            advice="Verify this enclave, and give it the secrets anew",
        )
    if abs(now.timestamp() - secrets.time) > MAX_CLOCK_SKEW:
        raise VerificationError(
            Check.SECRET_TIME,
            f"signed at {secrets.time}, here it is {int(now.timestamp())}; at most {MAX_CLOCK_SKEW} s apart are accepted",
            advice="Set the owner's clock, or have the operator set the enclave's",
        )
    if secrets.values.keys() != set(names):
        raise VerificationError(
            Check.SECRET_NAME,
            f"expected {', '.join(sorted(names))}, found {len(secrets.values)} names that are not exactly these",
            advice="Give every secret that the configuration lists, and no other",
        )


def _salt(owner: Ed25519PrivateKey, values: Mapping[str, bytes]) -> bytes:
    """The same for the same secrets, and nobody else can make it: Ed25519 signs without chance, and this is never shown."""
    return sha256(owner.sign(_SALT + sha256(_canonical(values)).digest())).digest()


def _canonical(values: Mapping[str, bytes]) -> bytes:
    return rfc8785.dumps({name: b64url_encode(value) for name, value in values.items()})


def _decoded(part: bytes) -> bytes:
    return b64url_decode(part.decode("latin-1"), _FORMAT, "a part of the JWS")


def _parse_claims(raw: dict[str, Any]) -> OwnerSecrets:
    members = {"v", "purpose", "statement", "time", "salt", "secrets"}
    parse_members(raw, "the secrets' claims", members, check=_FORMAT)
    if type(raw["v"]) is not int or raw["v"] != VERSION or raw["purpose"] != PURPOSE:
        raise MalformedError(_FORMAT, f"expected version {VERSION} for {PURPOSE!r}")
    time, statement, values = raw["time"], raw["statement"], raw["secrets"]
    if type(time) is not int or not 0 <= time < 2**38:
        raise MalformedError(_FORMAT, "time must be Unix seconds")
    if not isinstance(values, dict):
        raise MalformedError(_FORMAT, "secrets must be an object")
    if not isinstance(statement, str) or len(statement) != 2 * _HASH or set(statement) - _HEX:
        raise MalformedError(_FORMAT, "statement must be 64 hexadecimal digits")
    try:
        rfc8785.dumps(list(values))
    except (rfc8785.CanonicalizationError, UnicodeError) as exc:
        raise MalformedError(_FORMAT, "a secret's name is no text") from exc
    return OwnerSecrets(
        statement=bytes.fromhex(statement),
        time=time,
        salt=parse_bytes(raw, "salt", _HASH, check=_FORMAT),
        values={name: parse_bytes(values, name, check=_FORMAT) for name in values},
    )


_HEX = frozenset("0123456789abcdef")
