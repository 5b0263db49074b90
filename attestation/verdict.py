"""The verdict: what was proven, by which roots, and until when it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from attestation.binding import Statement
from attestation.evidence import Evidence
from attestation.measure import EventLogClaims
from attestation.nvidia.tokens import TokenClaims
from attestation.nvidia.verify import GpuClaims
from attestation.roots import Root, is_vendor
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.vtpm import VtpmClaims


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An accepted enclave. There is no verdict for a refused one: that is an AttestationError."""

    cpu: TdxClaims | SnpClaims
    vtpm: VtpmClaims | None  # on Azure: what the VM's vTPM signed, whose key that CPU vouches for
    gpus: Sequence[GpuClaims]
    gpu_token: TokenClaims | None  # a service's word on the GPUs, where the policy lets it stand in
    boot: EventLogClaims | None  # what the event log explains, when one came along
    statement: Statement
    statement_digest: bytes
    verified_at: datetime
    valid_until: datetime
    evidence: Evidence = field(repr=False)  # what it was reached from, so that others can reach it again
    nonce: bytes = field(repr=False)

    @property
    def roots(self) -> tuple[Root, ...]:
        """Every trust anchor this verdict rests on, once."""
        gpus = [root for gpu in self.gpus for root in (gpu.root, gpu.rim_root) if root is not None]
        return tuple(dict.fromkeys((self.cpu.root, *gpus)))

    @property
    def simulated(self) -> bool:
        """True when any root is not a hardware vendor's own: then this proves nothing about hardware."""
        return not all(is_vendor(root) for root in self.roots)
