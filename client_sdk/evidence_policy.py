"""Policies for raw evidence: what is judged when nobody gave a policy, and the policy file with the tables for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from attestation.nitro import NitroPolicy
from attestation.nvidia.policy import GpuPolicy
from attestation.policy import Policy, parse_policy
from attestation.snp.policy import AUTHENTIC_ONLY
from attestation.tdx import TdxPolicy
from attestation.vtpm import VtpmPolicy
from client_sdk.terms import read_policy_text

# Authenticity, revocation, dates, TCB status, debug and reserved bits are judged; what runs, and for whom, is not.
RAW_TDX = TdxPolicy(
    any_measurement=True,
    any_mr_config_id=True,
    any_mr_owner=True,
    any_mr_owner_config=True,
    allow_padding=True,
)
RAW_SNP = AUTHENTIC_ONLY
RAW_NITRO = NitroPolicy(
    any_measurement=True, any_age=True, any_nonce=True, any_user_data=True, any_public_key=True
)
RAW_GPU = GpuPolicy(allow_unreported_state=True)  # NVIDIA's own list has nowhere to report it

RAW_AZURE = VtpmPolicy(
    snp=RAW_SNP,
    tdx=replace(RAW_TDX, allow_sept_ve=True),  # Azure's paravisor handles #VE itself
    any_pcrs=True,
    any_user_data=True,
    allow_console=True,  # on in Azure's VMs unless their owner turns it off
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidencePolicy(Policy):
    """A policy file, with tables for the kinds of evidence that only `attested evidence` judges."""

    nitro: NitroPolicy | None = None


RAW = EvidencePolicy(tdx=RAW_TDX, snp=RAW_SNP, gpu=RAW_GPU, nitro=RAW_NITRO, azure=RAW_AZURE)


def read_policy(path: Path) -> EvidencePolicy:
    """The policy in a TOML file. Unknown keys, wrong types and wrong lengths are errors."""
    return parse_policy(read_policy_text(path), EvidencePolicy)
