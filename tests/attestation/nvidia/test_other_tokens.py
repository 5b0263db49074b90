"""Intel Trust Authority's and Azure Attestation's tokens: the same rules, and failures of the same names."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.nvidia.jws import ITA, NRAS
from attestation.nvidia.tokens import TokenClaims, verify_ita, verify_maa, verify_token
from attestation.simulator.pki import p384_key
from tests.attestation.nvidia.conftest import NONCE, NOW
from tests.attestation.nvidia.token_makers import JWKS, MAA, azure, ita, nras


def _maa(data: bytes) -> TokenClaims:
    return verify_maa(data, JWKS, NONCE, NOW, issuer=MAA)


def _ita(data: bytes) -> TokenClaims:
    return verify_ita(data, JWKS, NONCE, NOW)


def test_intel_and_azure() -> None:
    """Both services' tokens verify by the same rules; Azure's speaks of no GPU."""
    assert _ita(ita()).gpus[0].model == "GH100 A01 GSP BROM"
    assert _ita(ita(alg="RS256")).issuer == "https://portal.trustauthority.intel.com"
    assert _maa(azure()).devices == ()
    assert _maa(azure({"x-ms-runtime": ..., "nonce": urlsafe_b64encode(NONCE).decode()})).devices == ()


@pytest.mark.parametrize(
    ("verify", "data", "check"),
    [
        (_ita, ita(key=p384_key(), alg="ES384"), Check.GPU_TOKEN_SIGNATURE),
        (_ita, ita(header={"kid": "ec"}), Check.GPU_TOKEN_SIGNATURE),
        (_ita, ita(overall={"iss": "https://portal.trustauthority.example"}), Check.GPU_TOKEN_ISSUER),
        (_ita, ita(overall={"exp": 1}), Check.GPU_TOKEN_TIME),
        (_ita, ita(gpu={"eat_nonce": "00"}), Check.GPU_TOKEN_NONCE),
        (_ita, ita(gpu={"measres": "comparison-fail"}), Check.GPU_TOKEN_RESULT),
        (_ita, ita(gpu={"x-nvidia-attestation-detailed-result": None}), Check.GPU_TOKEN_RESULT),
        (_ita, ita(detail={"x-nvidia-gpu-measurements-match": False}), Check.GPU_TOKEN_RESULT),
        (_ita, ita(detail={"x-nvidia-gpu-vbios-rim-cert-validated": False}), Check.GPU_TOKEN_RESULT),
        (_ita, ita(overall={"nvgpu": ...}), Check.GPU_TOKEN_RESULT),
        (_ita, ita(overall={"policy_ids_unmatched": [{"id": "x"}]}), Check.GPU_TOKEN_RESULT),
        (_ita, "é".encode(), Check.GPU_TOKEN_FORMAT),
        (_ita, b"x" * 300_000, Check.GPU_TOKEN_FORMAT),
        (_maa, azure(alg="PS384"), Check.GPU_TOKEN_SIGNATURE),
        (_maa, azure({"iss": "https://evil.eus.attest.azure.net"}), Check.GPU_TOKEN_ISSUER),
        (_maa, azure({"x-ms-runtime": {"client-payload": {"nonce": "AAAA"}}}), Check.GPU_TOKEN_NONCE),
        (_maa, azure({"x-ms-runtime": ..., "nonce": "é"}), Check.GPU_TOKEN_NONCE),
        (_maa, azure({"x-ms-isolation-tee": {}}), Check.GPU_TOKEN_RESULT),
        (_maa, azure({"x-ms-isolation-tee": "x"}), Check.GPU_TOKEN_RESULT),
    ],
    ids=range(19),
)
def test_intel_and_azure_refusals(verify: Callable[[bytes], TokenClaims], data: bytes, check: Check) -> None:
    """Each of their failures has the same names as NVIDIA's."""
    with pytest.raises(AttestationError) as error:
        verify(data)
    assert error.value.check is check


def test_issuers_do_not_mix() -> None:
    """A token of one service is not another's, though the keys be trusted."""
    with pytest.raises(VerificationError):
        verify_ita(azure(), JWKS, NONCE, NOW)
    assert set(NRAS.algorithms).isdisjoint(ITA.algorithms)


def test_any_service() -> None:
    """One function takes each service's token by its form; an instance of Azure's has to be named."""
    instance = "https://sharedeus.eus.attest.azure.net"
    assert len(verify_token(nras(), JWKS, NONCE, NOW).devices) == 2
    assert len(verify_token(ita(), JWKS, NONCE, NOW).devices) == 1
    assert verify_token(azure(), JWKS, NONCE, NOW, azure=instance).issuer == instance
    with pytest.raises(VerificationError) as error:
        verify_token(azure(), JWKS, NONCE, NOW)
    assert error.value.check is Check.GPU_TOKEN_ISSUER
