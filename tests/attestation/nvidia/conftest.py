"""A simulated NVIDIA machine, the time it is asked at, and the nonce."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, Violation
from attestation.nvidia.policy import GpuPolicy
from attestation.nvidia.verify import GpuClaims, verify_all
from attestation.roots import VENDOR
from attestation.simulator.nvidia import GpuDefect, Machine, SimulatedNvidia

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NONCE = bytes(range(32))
T = TypeVar("T")


@pytest.fixture(scope="session")
def nvidia() -> SimulatedNvidia:
    return SimulatedNvidia.create()


def ask(
    nvidia: SimulatedNvidia, defect: GpuDefect | None = None, now: datetime = NOW
) -> tuple[GpuClaims, ...]:
    """The claims of the simulated machine, with one defect in evidence and collateral alike."""
    collateral = nvidia.collateral(NOW, defect)
    return verify_all(nvidia.evidence(NONCE, defect), NONCE, collateral, nvidia.trust(VENDOR), now)


def judge(machine: Machine, policy: GpuPolicy, defect: GpuDefect | None = None) -> list[Violation]:
    """What `policy` has against a machine of that shape."""
    return policy.check(ask(SimulatedNvidia.create(machine), defect), NOW)


def outcome(parse: Callable[[bytes], T], data: bytes) -> T | AttestationError:
    """The value that `parse` gives, or the error of ours that it raises; any other error fails the test."""
    try:
        return parse(data)
    except AttestationError as error:
        return error


def is_malformed(found: object, check: Check) -> bool:
    return isinstance(found, MalformedError) and found.check is check
