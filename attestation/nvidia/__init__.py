"""NVIDIA GPUs and NVSwitches in confidential-computing mode: SPDM evidence, RIMs, OCSP, tokens."""

from attestation.nvidia.verify import verify, verify_all

__all__ = ["verify", "verify_all"]
