"""Tokens of attestation services: pinned keys, one algorithm family, exact issuer, time as an argument, every result true."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, VerificationError
from attestation.nvidia.jws import TokenIssuer
from attestation.nvidia.tokens import verify_ita, verify_nras
from tests.attestation.nvidia.conftest import NONCE, NOW
from tests.attestation.nvidia.token_makers import (
    EC,
    GOOD_CHAIN,
    JWKS,
    RSA,
    STRANGER,
    Change,
    gpu_claims,
    nras,
    sign,
    times,
)


def refused(data: bytes, *, nonce: bytes = NONCE, now: datetime = NOW, jwks: bytes = JWKS) -> Check:
    """The check by which NVIDIA's token is refused."""
    with pytest.raises(AttestationError) as error:
        verify_nras(data, jwks, nonce, now)
    assert isinstance(error.value, MalformedError | VerificationError)
    return error.value.check


def test_good() -> None:
    """A good bundle says which devices it vouches for and until when."""
    claims = verify_nras(nras(), JWKS, NONCE, NOW)
    assert [d.name for d in claims.devices] == ["GPU-0", "SWITCH-0"]
    (gpu,) = claims.gpus
    assert (gpu.model, gpu.ueid, gpu.driver, gpu.vbios) == (
        "GH100 A01 GSP BROM",
        "123",
        "580.95.05",
        "96.00.74.00.1A",
    )
    assert claims.expires == datetime.fromtimestamp(times()["exp"], UTC)


@pytest.mark.parametrize("alg", ["HS256", "HS384", "none", "ES256", "RS256"])
def test_other_algorithms(alg: str) -> None:
    """No algorithm but NVIDIA's, and above all no symmetric one and none at all."""
    key: Any = {"ES256": ec.generate_private_key(ec.SECP256R1()), "RS256": RSA, "none": ""}.get(
        alg, b"k" * 48
    )
    assert refused(nras(alg=alg, key=key)) is Check.GPU_TOKEN_SIGNATURE


def test_public_keys_are_no_secrets() -> None:
    """A token "signed" with HMAC under the public key's own text is refused."""
    public = ECAlgorithm.to_jwk(EC.public_key())
    head = {"alg": "HS256", "kid": "ec", "typ": "JWT"}
    text = ".".join(urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in (head, times()))
    mac = urlsafe_b64encode(sha256(public.encode() + text.encode()).digest()).rstrip(b"=").decode()
    assert (
        refused(json.dumps([["JWT", f"{text}.{mac}"], {"GPU-0": "x"}]).encode()) is Check.GPU_TOKEN_SIGNATURE
    )


def test_other_keys() -> None:
    """A stranger's signature, an unknown key and a key brought along in the header are refused."""
    own = {"jwk": json.loads(ECAlgorithm.to_jwk(STRANGER.public_key())), "jku": "https://example.com/jwks"}
    assert refused(nras(key=STRANGER)) is Check.GPU_TOKEN_SIGNATURE
    assert refused(nras(key=STRANGER, header=own)) is Check.GPU_TOKEN_SIGNATURE
    assert refused(nras(header={"kid": "unknown"})) is Check.GPU_TOKEN_SIGNATURE


def test_a_key_of_another_kind() -> None:
    """An RSA key under an EC algorithm has signed nothing."""
    assert refused(nras(header={"kid": "rsa"})) is Check.GPU_TOKEN_SIGNATURE


@pytest.mark.parametrize(
    "iss", ["https://nras.attestation-stg.nvidia.com", "https://nras.attestation.nvidia.com/", ...]
)
def test_issuers_are_exact(iss: object) -> None:
    """The staging service, a longer name and no name are not the issuer; neither for the whole nor for a device."""
    assert refused(nras(overall={"iss": iss})) in {Check.GPU_TOKEN_ISSUER, Check.GPU_TOKEN_FORMAT}
    assert refused(nras(gpu={"iss": iss})) in {Check.GPU_TOKEN_ISSUER, Check.GPU_TOKEN_FORMAT}


def test_issuer_check() -> None:
    """Another issuer's authentic token fails the issuer check."""
    assert refused(nras(overall={"iss": "https://nras.attestation-stg.nvidia.com"})) is Check.GPU_TOKEN_ISSUER


@pytest.mark.parametrize(
    "change",
    [
        {"exp": ...},
        {"exp": "soon"},
        {"exp": True},
        {"exp": 1},
        {"exp": 2**60},
        {"exp": 1.5},
        {"nbf": ..., "iat": ...},
        {"iat": "x"},
        {"nbf": 2**34},
    ],
    ids=str,
)
def test_times_are_required(change: Change) -> None:
    """A token without an expiry, a start, or with nonsense for them, is refused: for the whole and for a device."""
    assert refused(nras(overall=change)) in {Check.GPU_TOKEN_TIME, Check.GPU_TOKEN_FORMAT}
    assert refused(nras(gpu=change)) in {Check.GPU_TOKEN_TIME, Check.GPU_TOKEN_FORMAT}


def test_time_is_an_argument() -> None:
    """An old token is good at its time and refused outside it, whatever the machine's clock says."""
    data = nras()
    for moment in (timedelta(seconds=-60), timedelta(hours=1)):
        assert verify_nras(data, JWKS, NONCE, NOW + moment).issuer == "https://nras.attestation.nvidia.com"
    for moment in (timedelta(seconds=-61), timedelta(seconds=3601)):
        assert refused(data, now=NOW + moment) is Check.GPU_TOKEN_TIME


def test_nonces() -> None:
    """The nonce must be ours, in the whole and in every device's token."""
    assert refused(nras(), nonce=bytes(32)) is Check.GPU_TOKEN_NONCE
    for other in (bytes(32).hex(), None, ..., [NONCE.hex()]):
        assert refused(nras(overall={"eat_nonce": other})) is Check.GPU_TOKEN_NONCE
        assert refused(nras(gpu={"eat_nonce": other})) is Check.GPU_TOKEN_NONCE


@pytest.mark.parametrize("value", [False, ..., None, "true", 1])
def test_the_overall_result(value: object) -> None:
    """Only the overall result `true` is success."""
    assert refused(nras(overall={"x-nvidia-overall-att-result": value})) is Check.GPU_TOKEN_RESULT


@pytest.mark.parametrize(
    "change",
    [
        *(
            {name: value}
            for name in gpu_claims()
            if name.startswith("x-nvidia-gpu") and gpu_claims()[name] is True
            for value in (False,)
        ),
        *({f"x-nvidia-gpu-{name}": ...} for name in ("arch-check", "driver-rim-version-match")),
        {"measres": "fail"},
        {"measres": ...},
        {"secboot": False},
        {"secboot": None},
        {"dbgstat": "enabled"},
        {"x-nvidia-attestation-warning": "certificate on hold"},
        {"x-nvidia-gpu-something-new": False},
        {"x-nvidia-gpu-driver-rim-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-status": "expired"}},
        {
            "x-nvidia-gpu-attestation-report-cert-chain": {
                **GOOD_CHAIN,
                "x-nvidia-cert-ocsp-status": "revoked",
            }
        },
        {"x-nvidia-gpu-attestation-report-cert-chain": "valid"},
        {"x-nvidia-gpu-vbios-rim-cert-chain": ...},
        {"x-nvidia-gpu-vbios-rim-cert-chain": {**GOOD_CHAIN, "x-nvidia-cert-ocsp-nonce-matches": False}},
    ],
    ids=lambda change: "-".join(map(str, change.items()))[:60],
)
def test_device_results(change: Change) -> None:
    """The overall result does not hide a device's: each of its claims must say success."""
    assert refused(nras(gpu=change)) is Check.GPU_TOKEN_RESULT


def test_switch_results() -> None:
    """The same for switches, by their own claims."""
    assert refused(nras(extra={"x-nvidia-switch-bios-rim-version-match": False})) is Check.GPU_TOKEN_RESULT
    assert refused(nras(extra={"x-nvidia-switch-arch-check": ...})) is Check.GPU_TOKEN_RESULT


def test_devices_are_bound_to_the_whole() -> None:
    """A device's token that the overall token does not name by digest, or one that is missing, is refused."""
    overall, devices = json.loads(nras())
    swapped = {"GPU-0": devices["SWITCH-0"], "SWITCH-0": devices["GPU-0"]}
    fresh = {**devices, "GPU-0": sign(gpu_claims())}
    for others in (swapped, fresh, {"GPU-0": devices["GPU-0"]}, {**devices, "GPU-1": devices["GPU-0"]}):
        assert refused(json.dumps([overall, others]).encode()) is Check.GPU_TOKEN_RESULT
    assert refused(nras(overall={"submods": ...})) is Check.GPU_TOKEN_RESULT


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'[["JWT","x"],{}]',
        b'[["JWT",1],{"GPU-0":"x"}]',
        b'[["JWT","x"],{"GPU-0":1}]',
        b'[["JWT","x"],{"GPU-0":"x"}]',
        b'[["JWT","a.b.c"],{"GPU-0":"x"}]',
        b'{"JWT": "x"}',
        b"[" * 100,
        b'"' + b"x" * 300_000 + b'"',
    ],
    ids=range(10),
)
def test_bad_bundles(data: bytes) -> None:
    """What is no bundle of tokens is malformed."""
    assert refused(data) is Check.GPU_TOKEN_FORMAT


@pytest.mark.parametrize(
    "jwks", [b"", b"{}", b'{"keys": []}', b'{"keys": [1]}', b'{"keys": [{"kty": "EC"}]}', b"[]"]
)
def test_bad_keys(jwks: bytes) -> None:
    """A set of keys that is none is malformed."""
    assert refused(nras(), jwks=jwks) is Check.GPU_TOKEN_FORMAT


@given(st.binary(max_size=80), st.text(max_size=60), st.text(max_size=60))
def test_any_bytes(data: bytes, overall: str, device: str) -> None:
    """Any bytes and any texts in a token's place are refused by an error of ours."""
    for bundle in (data, json.dumps([["JWT", overall], {"GPU-0": device}]).encode()):
        refused(bundle)
    with pytest.raises(AttestationError):
        verify_ita(data, JWKS, NONCE, NOW)


def test_only_asymmetric_algorithms_can_be_named() -> None:
    """An issuer with a symmetric algorithm, or none, cannot be written down."""
    for algorithms in ((), ("HS256",), ("none",), ("ES384", "HS256")):
        with pytest.raises(ValueError, match="algorithms must be among"):
            TokenIssuer(name="x", issuers=frozenset({"x"}), algorithms=algorithms)
