"""What a local vendor serves, and how a fetch fails."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest

from attestation._download import Patience
from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import UnavailableError
from attestation.fetch import Fetcher
from attestation.simulator.nvidia import Machine, SimulatedNvidia
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from tests.vendor import Vendor

NOW = datetime.now(UTC).replace(microsecond=0)
DATA = bytes(range(64))


@cache
def tdx_machine() -> tuple[SimulatedTdx, bytes, IntelCollateral]:
    sim = SimulatedTdx.create()
    return sim, sim.quote(DATA), sim.collateral(NOW)


@cache
def snp_machine() -> SimulatedSnp:
    return SimulatedSnp()


class Waits(list[float]):
    """Stands for `time.sleep`, and remembers."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def again(
    vendor: Vendor, tmp_path: Path, waits: Waits, *, after: timedelta, offline: bool = False
) -> Fetcher:
    return Fetcher(
        sources=vendor.sources,
        cache=tmp_path / "cache",
        offline=offline,
        patience=Patience(sleep=waits),
        now=lambda: NOW + after,
    )


def unavailable(call: Callable[[], object]) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        call()
    assert caught.value.check is Check.COLLATERAL_FETCH
    assert caught.value.advice
    return caught.value


# NVIDIA: manifests by name, and one question for each certificate


@cache
def gpu_machine() -> tuple[SimulatedNvidia, bytes]:
    machine = SimulatedNvidia.create(Machine(gpus=2))
    return machine, machine.evidence(bytes(32))
