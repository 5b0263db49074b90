"""Signed JSON Web Tokens of attestation services, verified by PyJWT with pinned keys and with the time as an argument.

A token's own headers choose nothing but the key's name: `jku`, `x5u`, `x5c` and `jwk` are never followed, and the algorithm
must be one that the caller expects of this service. Symmetric algorithms and "none" cannot even be named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.types import Options

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

MAX_TOKEN_BYTES = 256 * 1024
MAX_JWKS_BYTES = 256 * 1024
# times, issuer and audience are judged here, against `now` and not against the machine's clock
_SIGNATURE_ONLY: Options = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssuer:
    """A service: its exact `iss` values and the signature algorithms it uses. Symmetric ones and "none" cannot be named."""

    name: str
    issuers: frozenset[str]
    algorithms: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.algorithms or not set(self.algorithms) <= {"ES384", "PS384", "RS256"}:
            raise ValueError(f"algorithms must be among ES384, PS384 and RS256, found {self.algorithms}")


NRAS = TokenIssuer(
    name="nras", issuers=frozenset({"https://nras.attestation.nvidia.com"}), algorithms=("ES384",)
)
ITA = TokenIssuer(
    name="ita",
    issuers=frozenset({"Intel Trust Authority", "https://portal.trustauthority.intel.com"}),
    algorithms=("PS384", "RS256"),
)


def maa(instance: str) -> TokenIssuer:
    """Azure Attestation signs per instance: `https://sharedeus.eus.attest.azure.net`."""
    return TokenIssuer(name="maa", issuers=frozenset({instance}), algorithms=("RS256",))


def token_text(data: bytes) -> str:
    if len(data) > MAX_TOKEN_BYTES:
        raise MalformedError(
            Check.GPU_TOKEN_FORMAT, f"{len(data)} bytes of token, the limit is {MAX_TOKEN_BYTES}"
        )
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, "a token is ASCII") from exc


def parse_jwks(jwks: bytes) -> dict[str, jwt.PyJWK]:
    raw = parse_json_object(jwks, Check.GPU_TOKEN_FORMAT, "JWKS", limit=MAX_JWKS_BYTES)
    try:
        return {key.key_id: key for key in jwt.PyJWKSet.from_dict(raw).keys if key.key_id}
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError) as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, f"not a set of keys ({exc})") from exc


def verify_jwt(
    token: str, keys: Mapping[str, jwt.PyJWK], issuer: TokenIssuer, now: datetime
) -> dict[str, Any]:
    """Signature by a pinned key, exact issuer, in date at `now`. PyJWT never sees the clock."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError) as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, f"not a JWT ({exc})") from exc
    key = keys.get(str(header.get("kid")))
    algorithm = header.get("alg")
    if key is None or algorithm not in issuer.algorithms or not _fits(key, algorithm):
        raise VerificationError(
            Check.GPU_TOKEN_SIGNATURE,
            f"expected {' or '.join(issuer.algorithms)} by one of {sorted(keys)}, "
            f"found {algorithm!r} by {header.get('kid')!r}",
        )
    try:
        claims = jwt.decode(token, key.key, algorithms=[algorithm], options=_SIGNATURE_ONLY)
    except jwt.InvalidSignatureError as exc:
        raise VerificationError(
            Check.GPU_TOKEN_SIGNATURE, f"key {header['kid']!r} did not sign this token"
        ) from exc
    except (jwt.PyJWTError, ValueError, TypeError) as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, f"not a JWT of this key ({exc})") from exc
    if claims.get("iss") not in issuer.issuers:
        raise VerificationError(
            Check.GPU_TOKEN_ISSUER,
            f"expected {' or '.join(sorted(issuer.issuers))}, found {claims.get('iss')!r}",
        )
    _check_times(claims, now)
    return claims


def _fits(key: jwt.PyJWK, algorithm: str) -> bool:
    kind = ec.EllipticCurvePublicKey if algorithm.startswith("ES") else rsa.RSAPublicKey
    return isinstance(key.key, kind)


def expiry(claims: Mapping[str, Any]) -> datetime:
    value = claims.get("exp")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**38:
        raise VerificationError(Check.GPU_TOKEN_TIME, f"the token states no time of expiry, found {value!r}")
    return datetime.fromtimestamp(value, UTC)


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    until = expiry(claims)
    starts = [claims[name] for name in ("nbf", "iat") if name in claims]
    if not starts or not all(isinstance(t, int) and not isinstance(t, bool) for t in starts):
        raise VerificationError(Check.GPU_TOKEN_TIME, "the token states no time of issue")
    if not max(starts) <= now.timestamp() <= until.timestamp():
        raise VerificationError(
            Check.GPU_TOKEN_TIME,
            f"the token is valid from {max(starts)} to {until:%Y-%m-%dT%H:%M:%SZ}, asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )


def check_nonce(found: object, nonce: bytes) -> None:
    text = found.lower() if isinstance(found, str) else ""
    if not compare_digest(text.encode(), nonce.hex().encode()):
        raise VerificationError(Check.GPU_TOKEN_NONCE, f"expected {nonce.hex()}, found {found!r}")
