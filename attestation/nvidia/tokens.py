"""What tokens of attestation services say: NVIDIA's NRAS, Intel Trust Authority, Microsoft Azure Attestation.

A token says that somebody else looked at the evidence. Every claim in it that states a result must state success:
the overall one and each device's. Whether a token may stand in for the evidence itself, the policy says.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from attestation._json import parse_json
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nvidia.jws import (
    ITA,
    MAX_TOKEN_BYTES,
    NRAS,
    TokenIssuer,
    check_nonce,
    expiry,
    maa,
    parse_jwks,
    token_text,
    verify_jwt,
)

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
    keys = parse_jwks(jwks)
    overall = verify_jwt(overall_token, keys, issuer, now)
    check_nonce(overall.get("eat_nonce"), nonce)
    _require(overall.get("x-nvidia-overall-att-result") is True, "x-nvidia-overall-att-result is not true")
    _check_digests(overall.get("submods"), device_tokens)
    devices = []
    for name, token in device_tokens.items():
        claims = verify_jwt(token, keys, issuer, now)
        check_nonce(claims.get("eat_nonce"), nonce)
        devices.append(_check_device(name, claims))
    return TokenClaims(issuer=overall["iss"], devices=tuple(devices), expires=expiry(overall), claims=overall)


def verify_ita(
    data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, issuer: TokenIssuer = ITA
) -> TokenClaims:
    """Intel Trust Authority's token with GPU claims (`nvgpu`). `nonce` is the one the GPU was asked with."""
    claims = verify_jwt(token_text(data), parse_jwks(jwks), issuer, now)
    gpu = claims.get("nvgpu")
    if not isinstance(gpu, dict):
        raise VerificationError(Check.GPU_TOKEN_RESULT, "the token has no claims about a GPU (nvgpu)")
    check_nonce(gpu.get("eat_nonce"), nonce)
    _require(not claims.get("policy_ids_unmatched"), "a policy of Intel Trust Authority did not match")
    detail = gpu.get("x-nvidia-attestation-detailed-result")
    detail = detail if isinstance(detail, dict) else {}
    for name in _ITA_REQUIRED:
        _require(detail.get(name) is True, f"nvgpu: {name} is {detail.get(name)!r}")
    _check_verdicts("nvgpu", gpu, measres={"success", "comparison-successful"})
    _check_all_true("nvgpu", detail)
    return TokenClaims(
        issuer=claims["iss"], devices=(_device("nvgpu", gpu, "gpu"),), expires=expiry(claims), claims=claims
    )


def verify_maa(data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, issuer: TokenIssuer) -> TokenClaims:
    """Azure Attestation's token of a confidential VM. It speaks of no GPU: `devices` is empty."""
    claims = verify_jwt(token_text(data), parse_jwks(jwks), issuer, now)
    runtime = claims.get("x-ms-runtime")
    payload = runtime.get("client-payload") if isinstance(runtime, dict) else None
    found = payload.get("nonce") if isinstance(payload, dict) else claims.get("nonce")
    check_nonce(_base64_to_hex(found), nonce)
    tee = claims.get("x-ms-isolation-tee", claims)
    status = tee.get("x-ms-compliance-status") if isinstance(tee, dict) else None
    _require(status == "azure-compliant-cvm", f"x-ms-compliance-status is {status!r}")
    return TokenClaims(issuer=claims["iss"], devices=(), expires=expiry(claims), claims=claims)


def verify_token(
    data: bytes, jwks: bytes, nonce: bytes, now: datetime, *, azure: str | None = None
) -> TokenClaims:
    """A token of any of the three services: NVIDIA's by its form, Azure's where its instance is named, else Intel's."""
    if data.lstrip().startswith(b"["):
        return verify_nras(data, jwks, nonce, now)
    if azure is not None:
        return verify_maa(data, jwks, nonce, now, issuer=maa(azure))
    return verify_ita(data, jwks, nonce, now)


def _parse_detached(data: bytes) -> tuple[str, dict[str, str]]:
    value = parse_json(data, Check.GPU_TOKEN_FORMAT, "NVIDIA token", limit=MAX_TOKEN_BYTES)
    match value:
        case [["JWT", str(overall)], dict(raw)] if raw:
            devices = {name: token for name, token in raw.items() if isinstance(token, str)}
            if len(devices) == len(raw):
                return overall, devices
    raise MalformedError(Check.GPU_TOKEN_FORMAT, 'expected [["JWT", token], {device: token, …}]')


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
