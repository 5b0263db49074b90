"""Tokens as NVIDIA's, Intel's and Microsoft's services write them, under keys of our own, with any claim changed."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import jwt
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from attestation.nvidia.jws import maa
from attestation.simulator.pki import p384_key, rsa_key
from tests.attestation.nvidia.conftest import NONCE, NOW

EC, STRANGER, RSA = p384_key(), p384_key(), rsa_key(2048)
KEYS = {"ec": EC, "rsa": RSA}
JWKS = json.dumps(
    {
        "keys": [
            {**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ec"},
            {**RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "rsa"},
        ]
    }
).encode()
MAA = maa("https://sharedeus.eus.attest.azure.net")
GOOD_CHAIN = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
Change = Mapping[str, Any]


def times() -> dict[str, int]:
    start = int(NOW.timestamp())
    return {"iat": start - 60, "nbf": start - 60, "exp": start + 3600}


_TRUE = (
    "arch-check",
    "attestation-report-parsed",
    "attestation-report-nonce-match",
    "attestation-report-signature-verified",
    "attestation-report-cert-chain-fwid-match",
)
_GPU = (
    "driver-rim-fetched",
    "driver-rim-signature-verified",
    "driver-rim-version-match",
    "driver-rim-measurements-available",
    "vbios-rim-fetched",
    "vbios-rim-signature-verified",
    "vbios-rim-version-match",
    "vbios-rim-measurements-available",
    "vbios-index-no-conflict",
)
_SWITCH = ("bios-rim-signature-verified", "bios-rim-version-match", "bios-rim-measurements-available")
_ITA = (
    "arch-check",
    "attestation-report-cert-chain-validated",
    "attestation-report-parsed",
    "attestation-report-signature-verified",
    "driver-rim-signature-verified",
    "measurements-match",
    "nonce-match",
    "vbios-rim-signature-verified",
)


def gpu_claims() -> dict[str, Any]:
    chains = ("attestation-report", "driver-rim", "vbios-rim")
    return {
        **{f"x-nvidia-gpu-{name}": True for name in (*_TRUE, *_GPU)},
        **{f"x-nvidia-gpu-{name}-cert-chain": GOOD_CHAIN for name in chains},
        **times(),
        "iss": "https://nras.attestation.nvidia.com",
        "eat_nonce": NONCE.hex(),
        "measres": "success",
        "secboot": True,
        "dbgstat": "disabled",
        "hwmodel": "GH100 A01 GSP BROM",
        "ueid": "123",
        "x-nvidia-gpu-driver-version": "580.95.05",
        "x-nvidia-gpu-vbios-version": "96.00.74.00.1A",
        "x-nvidia-attestation-warning": None,
    }


def switch_claims() -> dict[str, Any]:
    base = {k: v for k, v in gpu_claims().items() if not k.startswith("x-nvidia-gpu-")}
    claims = {f"x-nvidia-switch-{name}": True for name in (*_TRUE, *_SWITCH)}
    chains = {f"x-nvidia-switch-{name}-cert-chain": GOOD_CHAIN for name in ("attestation-report", "bios-rim")}
    return {**base, **claims, **chains, "hwmodel": "LS_10 A01 FSP BROM"}


def sign(
    claims: Change, *, kid: str = "ec", alg: str = "ES384", key: Any = None, header: Change | None = None
) -> str:
    """A JWT; claims that are `...` are left out."""
    present = {name: value for name, value in claims.items() if value is not ...}
    signing: Any = KEYS[kid] if key is None else key
    return jwt.encode(present, signing, algorithm=alg, headers={"kid": kid, **(header or {})})


def nras(
    *, overall: Change | None = None, gpu: Change | None = None, extra: Change | None = None, **how: Any
) -> bytes:
    """A detached EAT of one GPU and one switch, with claims changed; `...` leaves one out."""
    devices = {
        "GPU-0": sign({**gpu_claims(), **(gpu or {})}),
        "SWITCH-0": sign({**switch_claims(), **(extra or {})}),
    }
    digests = {
        name: ["DIGEST", ["SHA-256", sha256(token.encode()).hexdigest()]] for name, token in devices.items()
    }
    claims = {
        **times(),
        "iss": "https://nras.attestation.nvidia.com",
        "eat_nonce": NONCE.hex(),
        "x-nvidia-overall-att-result": True,
        "x-nvidia-ver": "3.0",
        "submods": digests,
        **(overall or {}),
    }
    return json.dumps([["JWT", sign(claims, **how)], devices]).encode()


def ita(
    gpu: Change | None = None, detail: Change | None = None, overall: Change | None = None, **how: Any
) -> bytes:
    """Intel Trust Authority's token with NVIDIA's older claims."""
    nvgpu = {
        "eat_nonce": NONCE.hex().upper(),
        "measres": "comparison-successful",
        "secboot": True,
        "hwmodel": "GH100 A01 GSP BROM",
        "ueid": "123",
        "x-nvidia-gpu-driver-version": "580.95.05",
        "x-nvidia-attestation-detailed-result": {f"x-nvidia-gpu-{n}": True for n in _ITA}
        | dict(detail or {}),
        **(gpu or {}),
    }
    claims = {
        **times(),
        "iss": "https://portal.trustauthority.intel.com",
        "ver": "2.0.0",
        "nvgpu": nvgpu,
        **(overall or {}),
    }
    return sign(claims, **{"kid": "rsa", "alg": "PS384", **how}).encode()


def azure(change: Change | None = None, **how: Any) -> bytes:
    """Azure Attestation's token of a confidential VM."""
    claims = {
        **times(),
        "iss": "https://sharedeus.eus.attest.azure.net",
        "x-ms-runtime": {"client-payload": {"nonce": urlsafe_b64encode(NONCE).decode()}},
        "x-ms-isolation-tee": {"x-ms-compliance-status": "azure-compliant-cvm"},
        **(change or {}),
    }
    return sign(claims, **{"kid": "rsa", "alg": "RS256", **how}).encode()
