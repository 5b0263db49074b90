"""API keys: 256 random bits, shown once, known afterwards only by their SHA-256.

A key is looked up by its digest. There is no comparison to do in constant time: how long a look-up takes tells at most
something about a digest, and whoever could steer digests towards a stored one would have broken SHA-256; the key itself,
256 random bits, cannot be approached byte by byte. For the same reason no slow password hash is needed.

With a pepper, a secret that is in no database, it is an HMAC instead: then nobody makes a key by writing to the database.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256

from enclave_server.asgi import Fields
from enclave_server.errors import ApiError

PREFIX = "sk-enclave-"  # so that scanners for lost secrets know one
SECRET_BYTES = 32
_BEARER = b"bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the store knows of one key. Times are Unix seconds; a limit of None is the settings' default."""

    id: str
    digest: bytes
    name: str
    tenant: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def usable(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def digest_of(secret: bytes, pepper: bytes | None = None) -> bytes:
    """SHA-256; HMAC-SHA-256 under the pepper where there is one."""
    return sha256(secret).digest() if pepper is None else hmac.digest(pepper, secret, "sha256")


def presented(fields: Fields) -> bytes:
    """The secret that a request shows: `Authorization: Bearer …`, or `x-api-key` as Anthropic's clients send it."""
    given = fields.get(b"authorization", [])
    found = [value[len(_BEARER) :].strip() for value in given if value[: len(_BEARER)].lower() == _BEARER]
    found += fields.get(b"x-api-key", [])
    if len(found) != 1 or not found[0]:
        raise unauthorized("No API key" if not found else "More than one API key, or an empty one,")
    return found[0]


def unauthorized(what: str) -> ApiError:
    return ApiError(401, "invalid_api_key", f"{what} was given. Send one as `Authorization: Bearer <key>`.")
