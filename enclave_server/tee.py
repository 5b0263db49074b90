"""Where this machine's CPU evidence comes from. Today: simulated TEEs, which sign real formats under a root of their own.

A client accepts a simulated TEE only when its policy names that root; nothing here can make it look like a vendor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, assert_never

from attestation.collateral import Collateral
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.roots import Root
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from enclave_server.settings import Settings, TeeKind


class Tee(Protocol):
    """Gives evidence over 64 bytes, and the collateral to judge it by. May block: call it in a thread."""

    def evidence(self, report_data: bytes) -> TdxEvidence | SnpEvidence: ...

    def gpus(self, nonce: bytes) -> bytes:
        """NVIDIA's evidence list, each device asked with `nonce`; empty on a machine without GPUs."""
        ...

    def collateral(self) -> Collateral: ...

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        """The roots to name in a policy, by vendor, where they are no vendor's."""
        ...


class _Gpus:
    """The simulated GPUs of a simulated machine; there may be none."""

    def __init__(self, settings: Settings) -> None:
        machine = Machine(gpus=settings.simulated_gpus)
        self._nvidia = (
            SimulatedNvidia.load_or_create(_directory(settings), machine) if settings.simulated_gpus else None
        )

    def gpus(self, nonce: bytes) -> bytes:
        return self._nvidia.evidence(nonce) if self._nvidia else b""

    def _gpu_collateral(self, now: datetime) -> NvidiaCollateral | None:
        return self._nvidia.collateral(now) if self._nvidia else None

    def _gpu_roots(self) -> dict[str, Root]:
        if self._nvidia is None:
            return {}
        return {"nvidia_device": self._nvidia.device_root, "nvidia_rim": self._nvidia.rim_root}


class _Tdx(_Gpus):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._tdx = SimulatedTdx.load_or_create(_directory(settings))

    def evidence(self, report_data: bytes) -> TdxEvidence:
        return TdxEvidence(self._tdx.quote(report_data))

    def collateral(self) -> Collateral:
        now = datetime.now(UTC)
        return Collateral(intel=self._tdx.collateral(now), nvidia=self._gpu_collateral(now))

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        return {"intel": self._tdx.root, **self._gpu_roots()}


class _Snp(_Gpus):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._snp = SimulatedSnp.load_or_create(_directory(settings))

    def evidence(self, report_data: bytes) -> SnpEvidence:
        return SnpEvidence(self._snp.report(report_data))

    def collateral(self) -> Collateral:
        now = datetime.now(UTC)
        return Collateral(amd=self._snp.collateral(now), nvidia=self._gpu_collateral(now))

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        return {"amd": self._snp.root, **self._gpu_roots()}


def open_tee(settings: Settings) -> Tee:
    """The source of evidence that the settings name."""
    match settings.tee:
        case TeeKind.SIMULATED_TDX:
            return _Tdx(settings)
        case TeeKind.SIMULATED_SNP:
            return _Snp(settings)
        case TeeKind.TDX | TeeKind.SNP:
            raise NotImplementedError(
                f'tee = "{settings.tee}": this version cannot collect evidence from real hardware yet; '
                'only "simulated-tdx" and "simulated-snp" work, and no client trusts those unless its policy names their root'
            )
        case never:
            assert_never(never)


def _directory(settings: Settings) -> Path:
    if settings.simulator_dir is None:
        raise ValueError(f'tee = "{settings.tee}" needs simulator_dir, where the simulator keeps its keys')
    settings.simulator_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.simulator_dir
