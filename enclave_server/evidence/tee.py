"""Where this machine's evidence comes from: its hardware, or a simulated TEE, which signs real formats under a root of its own.

A client accepts a simulated TEE only when its policy names that root; nothing here can make it look like a vendor's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.binding import tpm_nonce
from attestation.collateral import Collateral
from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence
from attestation.roots import Root, Roots
from attestation.serving import make_seal, sealed_register
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import DEFAULT_TD, SimulatedTdx
from attestation.snp.verify import SnpClaims
from attestation.tdx.verify import TdxClaims
from attestation.verify import hardware_of, verify_cpu
from enclave_server.choices import TeeKind
from enclave_server.evidence.collateral import CollateralState
from enclave_server.evidence.development_vtpm import DevelopmentVtpm
from enclave_server.evidence.hardware import Hardware
from enclave_server.settings import Settings


class Tee(Protocol):
    """Gives evidence over 64 bytes, and the collateral to judge it by. Evidence may block: ask for it in a thread."""

    def evidence(self, report_data: bytes) -> CpuEvidence: ...

    def gpus(self, nonce: bytes) -> bytes:
        """NVIDIA's evidence list, each device asked with `nonce`; empty on a machine without GPUs."""
        ...

    def event_log(self) -> bytes:
        """The log of this boot, in TCG2 format; empty where there is none."""
        ...

    def collateral(self) -> Collateral:
        """What is at hand. The first call begins to keep it fresh; none waits."""
        ...

    @property
    def state(self) -> CollateralState: ...

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        """The roots to name in a policy, by vendor, where they are no vendor's."""
        ...

    def begin_serving(self) -> None:
        """Seal the boot: from here on statements carry a seal. Once, by the parent, when it has its keys."""
        ...

    def seal(self, statement: bytes) -> bytes:
        """The serving seal of a statement; empty where none was asked for."""
        ...

    def refresh(self) -> TdxClaims | SnpClaims:
        """Fetch collateral now, and wait for it: what it says of this machine. Raises what stands in the way."""
        ...

    def close(self) -> None: ...


class Simulated:
    """A simulated TDX or SEV-SNP machine, with this machine's own vTPM or simulated GPUs where the settings say so."""

    def __init__(self, settings: Settings) -> None:
        folder = _directory(settings)
        self._cpu: SimulatedTdx | SimulatedSnp
        if settings.tee is TeeKind.SIMULATED_TDX:
            self._cpu = SimulatedTdx.load_or_create(folder)
        else:
            self._cpu = SimulatedSnp.load_or_create(folder)
        self._vtpm: DevelopmentVtpm | None = None
        if settings.tee is TeeKind.SIMULATED_AZURE_SNP and isinstance(self._cpu, SimulatedSnp):
            self._vtpm = DevelopmentVtpm(self._cpu, seconds=settings.evidence_seconds)
        machine = Machine(gpus=settings.simulated_gpus)
        self._nvidia = SimulatedNvidia.load_or_create(folder, machine) if settings.simulated_gpus else None
        self._td, self._seal_key = DEFAULT_TD, Ed25519PrivateKey.generate() if settings.serving_seal else None

    def evidence(self, report_data: bytes) -> CpuEvidence:
        if self._vtpm:
            return self._vtpm.evidence(tpm_nonce(report_data))
        if isinstance(self._cpu, SimulatedTdx):
            return TdxEvidence(self._cpu.quote(report_data, td=self._td))
        return SnpEvidence(self._cpu.report(report_data))

    def gpus(self, nonce: bytes) -> bytes:
        return self._nvidia.evidence(nonce) if self._nvidia else b""

    def event_log(self) -> bytes:
        return b""

    def collateral(self) -> Collateral:
        now = datetime.now(UTC)
        nvidia = self._nvidia.collateral(now) if self._nvidia else None
        if isinstance(self._cpu, SimulatedTdx):
            return Collateral(intel=self._cpu.collateral(now), nvidia=nvidia)
        return Collateral(amd=self._cpu.collateral(now), nvidia=nvidia)

    @property
    def state(self) -> CollateralState:
        return CollateralState()

    @property
    def simulated_roots(self) -> Mapping[str, Root]:
        roots = {"intel" if isinstance(self._cpu, SimulatedTdx) else "amd": self._cpu.root}
        if self._nvidia:
            roots |= {"nvidia_device": self._nvidia.device_root, "nvidia_rim": self._nvidia.rim_root}
        return roots

    def begin_serving(self) -> None:
        if self._seal_key is not None:
            self._td = replace(
                self._td, rtmr3=sealed_register(self._seal_key.public_key().public_bytes_raw())
            )

    def seal(self, statement: bytes) -> bytes:
        return make_seal(self._seal_key, statement) if self._seal_key is not None else b""

    def refresh(self) -> TdxClaims | SnpClaims:
        roots = self.simulated_roots
        trusted = Roots(intel=(roots["intel"],)) if "intel" in roots else Roots(amd=(roots["amd"],))
        return hardware_of(
            verify_cpu(self.evidence(bytes(64)), self.collateral(), trusted, datetime.now(UTC))
        )

    def close(self) -> None:
        """There is nothing to end."""


def open_tee(settings: Settings) -> Tee:
    """The source of evidence that the settings name. Raises UnavailableError where the machine has no such."""
    return Hardware(settings) if settings.real_tee else Simulated(settings)


def _directory(settings: Settings) -> Path:
    if settings.simulator_dir is None:
        raise ValueError(f'tee = "{settings.tee}" needs simulator_dir, where the simulator keeps its keys')
    settings.simulator_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return settings.simulator_dir
