"""Tokens of attestation services: NVIDIA's NRAS, Intel Trust Authority, Microsoft Azure Attestation.

A token says that somebody else looked at the evidence. It is verified with the service's keys that the caller pins (a JWKS;
`jku`, `x5u` and `x5c` headers are never followed), one algorithm family per service, and every claim in it that
states a result must state success: the overall one and each device's. Whether a token may stand in for the
evidence itself, the policy says.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.types import Options

from attestation._json import parse_json, parse_json_object
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

# What a device's claims must at least contain; NVIDIA's claims version 3
_GPU_REQUIRED = (
    "arch-check",
    "attestation-report-parsed",
    "attestation-report-nonce-match",
    "attestation-report-signature-verified",
    "attestation-report-cert-chain-fwid-match",
    "driver-rim-signature-verified",
    "driver-rim-version-match",
    "driver-rim-measurements-available",
    "vbios-rim-signature-verified",
    "vbios-rim-version-match",
    "vbios-rim-measurements-available",
    "vbios-index-no-conflict",
)
_SWITCH_REQUIRED = (
    "arch-check",
    "attestation-report-parsed",
    "attestation-report-nonce-match",
    "attestation-report-signature-verified",
    "attestation-report-cert-chain-fwid-match",
    "bios-rim-signature-verified",
    "bios-rim-version-match",
    "bios-rim-measurements-available",
)
_GPU_CHAINS = ("attestation-report", "driver-rim", "vbios-rim")
_SWITCH_CHAINS = ("attestation-report", "bios-rim")
# Intel Trust Authority passes on the older claims of NVIDIA's service
_ITA_REQUIRED = (
    "x-nvidia-gpu-arch-check",
    "x-nvidia-gpu-attestation-report-cert-chain-validated",
    "x-nvidia-gpu-attestation-report-parsed",
    "x-nvidia-gpu-attestation-report-signature-verified",
    "x-nvidia-gpu-driver-rim-signature-verified",
    "x-nvidia-gpu-measurements-match",
    "x-nvidia-gpu-nonce-match",
    "x-nvidia-gpu-vbios-rim-signature-verified",
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenDevice:
    """One GPU or NVSwitch that a token vouches for."""

    name: str
    switch: bool
    model: str
    ueid: str
    driver: str
    vbios: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClaims:
    """What an authentic token says. `claims` are the overall ones, for a caller's own rules."""

    issuer: str
    devices: tuple[TokenDevice, ...]
    expires: datetime
    claims: Mapping[str, Any]

    @property
    def gpus(self) -> tuple[TokenDevice, ...]:
        return tuple(d for d in self.devices if not d.switch)


def verify_nras(
    data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, issuer: TokenIssuer = NRAS
) -> TokenClaims:
    """A detached EAT, `[["JWT", overall], {name: device token, …}]`: every token of it, and that they belong together."""
    overall_token, device_tokens = _parse_detached(data)
    keys = _parse_jwks(jwks)
    overall = _verify_jwt(overall_token, keys, issuer, now)
    _check_nonce(overall.get("eat_nonce"), nonce)
    _require(overall.get("x-nvidia-overall-att-result") is True, "x-nvidia-overall-att-result is not true")
    _check_digests(overall.get("submods"), device_tokens)
    devices = []
    for name, token in device_tokens.items():
        claims = _verify_jwt(token, keys, issuer, now)
        _check_nonce(claims.get("eat_nonce"), nonce)
        devices.append(_check_device(name, claims))
    return TokenClaims(
        issuer=overall["iss"], devices=tuple(devices), expires=_expiry(overall), claims=overall
    )


def verify_ita(
    data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, issuer: TokenIssuer = ITA
) -> TokenClaims:
    """Intel Trust Authority's token with GPU claims (`nvgpu`). `nonce` is the one the GPU was asked with."""
    claims = _verify_jwt(_token_text(data), _parse_jwks(jwks), issuer, now)
    gpu = claims.get("nvgpu")
    if not isinstance(gpu, dict):
        raise VerificationError(Check.GPU_TOKEN_RESULT, "the token has no claims about a GPU (nvgpu)")
    _check_nonce(gpu.get("eat_nonce"), nonce)
    _require(not claims.get("policy_ids_unmatched"), "a policy of Intel Trust Authority did not match")
    detail = gpu.get("x-nvidia-attestation-detailed-result")
    detail = detail if isinstance(detail, dict) else {}
    for name in _ITA_REQUIRED:
        _require(detail.get(name) is True, f"nvgpu: {name} is {detail.get(name)!r}")
    _check_verdicts("nvgpu", gpu, measres={"success", "comparison-successful"})
    _check_all_true("nvgpu", detail)
    return TokenClaims(
        issuer=claims["iss"], devices=(_device("nvgpu", gpu, "gpu"),), expires=_expiry(claims), claims=claims
    )


def verify_maa(data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, issuer: TokenIssuer) -> TokenClaims:
    """Azure Attestation's token of a confidential VM. It speaks of no GPU: `devices` is empty."""
    claims = _verify_jwt(_token_text(data), _parse_jwks(jwks), issuer, now)
    runtime = claims.get("x-ms-runtime")
    payload = runtime.get("client-payload") if isinstance(runtime, dict) else None
    found = payload.get("nonce") if isinstance(payload, dict) else claims.get("nonce")
    _check_nonce(_base64_to_hex(found), nonce)
    tee = claims.get("x-ms-isolation-tee", claims)
    status = tee.get("x-ms-compliance-status") if isinstance(tee, dict) else None
    _require(status == "azure-compliant-cvm", f"x-ms-compliance-status is {status!r}")
    return TokenClaims(issuer=claims["iss"], devices=(), expires=_expiry(claims), claims=claims)


def _parse_detached(data: bytes) -> tuple[str, dict[str, str]]:
    value = parse_json(data, Check.GPU_TOKEN_FORMAT, "NVIDIA token", limit=MAX_TOKEN_BYTES)
    match value:
        case [["JWT", str(overall)], dict(raw)] if raw:
            devices = {name: token for name, token in raw.items() if isinstance(token, str)}
            if len(devices) == len(raw):
                return overall, devices
    raise MalformedError(Check.GPU_TOKEN_FORMAT, 'expected [["JWT", token], {device: token, …}]')


def _token_text(data: bytes) -> str:
    if len(data) > MAX_TOKEN_BYTES:
        raise MalformedError(
            Check.GPU_TOKEN_FORMAT, f"{len(data)} bytes of token, the limit is {MAX_TOKEN_BYTES}"
        )
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, "a token is ASCII") from exc


def _parse_jwks(jwks: bytes) -> dict[str, jwt.PyJWK]:
    raw = parse_json_object(jwks, Check.GPU_TOKEN_FORMAT, "JWKS", limit=MAX_JWKS_BYTES)
    try:
        return {key.key_id: key for key in jwt.PyJWKSet.from_dict(raw).keys if key.key_id}
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError) as exc:
        raise MalformedError(Check.GPU_TOKEN_FORMAT, f"not a set of keys ({exc})") from exc


def _verify_jwt(
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


def _expiry(claims: Mapping[str, Any]) -> datetime:
    value = claims.get("exp")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**38:
        raise VerificationError(Check.GPU_TOKEN_TIME, f"the token states no time of expiry, found {value!r}")
    return datetime.fromtimestamp(value, UTC)


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    until = _expiry(claims)
    starts = [claims[name] for name in ("nbf", "iat") if name in claims]
    if not starts or not all(isinstance(t, int) and not isinstance(t, bool) for t in starts):
        raise VerificationError(Check.GPU_TOKEN_TIME, "the token states no time of issue")
    if not max(starts) <= now.timestamp() <= until.timestamp():
        raise VerificationError(
            Check.GPU_TOKEN_TIME,
            f"the token is valid from {max(starts)} to {until:%Y-%m-%dT%H:%M:%SZ}, asked at {now:%Y-%m-%dT%H:%M:%SZ}",
        )


def _check_nonce(found: object, nonce: bytes) -> None:
    text = found.lower() if isinstance(found, str) else ""
    if not compare_digest(text.encode(), nonce.hex().encode()):
        raise VerificationError(Check.GPU_TOKEN_NONCE, f"expected {nonce.hex()}, found {found!r}")


def _base64_to_hex(value: object) -> str:
    try:
        return urlsafe_b64decode(str(value).replace("+", "-").replace("/", "_").rstrip("=") + "==").hex()
    except ValueError:
        return ""


def _require(holds: bool, detail: str) -> None:
    if not holds:
        raise VerificationError(Check.GPU_TOKEN_RESULT, detail)


def _check_digests(submods: object, tokens: Mapping[str, str]) -> None:
    """The overall token names every device token by its digest, and no other."""
    expected = {
        name: ["DIGEST", ["SHA-256", sha256(token.encode()).hexdigest()]] for name, token in tokens.items()
    }
    if submods != expected:
        named = sorted(submods) if isinstance(submods, dict) else submods
        raise VerificationError(
            Check.GPU_TOKEN_RESULT,
            f"the overall token vouches for {named}, and not for these tokens of {sorted(tokens)}",
        )


def _check_device(name: str, claims: Mapping[str, Any]) -> TokenDevice:
    kind = "switch" if name.upper().startswith("SWITCH") else "gpu"
    required, chains = (
        (_SWITCH_REQUIRED, _SWITCH_CHAINS) if kind == "switch" else (_GPU_REQUIRED, _GPU_CHAINS)
    )
    for claim in (f"x-nvidia-{kind}-{short}" for short in required):
        _require(claims.get(claim) is True, f"{name}: {claim} is {claims.get(claim)!r}")
    for claim in (f"x-nvidia-{kind}-{short}-cert-chain" for short in chains):
        chain = claims[claim] if isinstance(claims.get(claim), dict) else {}
        found = chain.get("x-nvidia-cert-status"), chain.get("x-nvidia-cert-ocsp-status")
        _require(found == ("valid", "good"), f"{name}: {claim} is {found}")
        _check_all_true(f"{name}: {claim}", chain)
    _check_verdicts(name, claims, measres={"success"})
    _check_all_true(name, claims)
    return _device(name, claims, kind)


def _check_verdicts(name: str, claims: Mapping[str, Any], *, measres: set[str]) -> None:
    _require(claims.get("measres") in measres, f"{name}: measres is {claims.get('measres')!r}")
    _require(claims.get("secboot") is True, f"{name}: secboot is {claims.get('secboot')!r}")
    if "dbgstat" in claims:
        _require(claims["dbgstat"] == "disabled", f"{name}: dbgstat is {claims['dbgstat']!r}")
    warning = claims.get("x-nvidia-attestation-warning")
    _require(warning is None, f"{name}: NVIDIA warns: {warning!r}")


def _check_all_true(name: str, claims: Mapping[str, Any]) -> None:
    """Claims that this version does not know count too: none that is about NVIDIA may be false."""
    failed = sorted(c for c, value in claims.items() if c.startswith("x-nvidia-") and value is False)
    _require(not failed, f"{name}: {', '.join(failed)} false")


def _device(name: str, claims: Mapping[str, Any], kind: str) -> TokenDevice:
    bios = "x-nvidia-switch-bios-version" if kind == "switch" else "x-nvidia-gpu-vbios-version"
    return TokenDevice(
        name=name,
        switch=kind == "switch",
        model=str(claims.get("hwmodel", "")),
        ueid=str(claims.get("ueid", "")),
        driver=str(claims.get("x-nvidia-gpu-driver-version", "")),
        vbios=str(claims.get(bios, "")),
    )
