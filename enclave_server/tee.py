"""Where this machine's CPU evidence comes from. Today: simulated TEEs, which sign real formats under a root of their own.

A client accepts a simulated TEE only when its policy names that root; nothing here can make it look like a vendor's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, assert_never

from attestation.collateral import Collateral
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.roots import Root
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from enclave_server.settings import Settings, TeeKind


class Tee(Protocol):
    """Gives evidence over 64 bytes, and the collateral to judge it by. May block: call it in a thread."""

    def evidence(self, report_data: bytes) -> TdxEvidence | SnpEvidence: ...

    def collateral(self) -> Collateral: ...

    @property
    def simulated_root(self) -> Root | None:
        """The root to name in a policy, when this is no vendor's."""
        ...


class _Tdx:
    def __init__(self, directory: Path) -> None:
        self._tdx = SimulatedTdx.load_or_create(directory)

    def evidence(self, report_data: bytes) -> TdxEvidence:
        return TdxEvidence(self._tdx.quote(report_data))

    def collateral(self) -> Collateral:
        return Collateral(intel=self._tdx.collateral(datetime.now(UTC)))

    @property
    def simulated_root(self) -> Root:
        return self._tdx.root


class _Snp:
    def __init__(self, directory: Path) -> None:
        self._snp = SimulatedSnp.load_or_create(directory)

    def evidence(self, report_data: bytes) -> SnpEvidence:
        return SnpEvidence(self._snp.report(report_data))

    def collateral(self) -> Collateral:
        return Collateral(amd=self._snp.collateral(datetime.now(UTC)))

    @property
    def simulated_root(self) -> Root:
        return self._snp.root


def open_tee(settings: Settings) -> Tee:
    """The source of evidence that the settings name."""
    match settings.tee:
        case TeeKind.SIMULATED_TDX:
            return _Tdx(_directory(settings))
        case TeeKind.SIMULATED_SNP:
            return _Snp(_directory(settings))
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
