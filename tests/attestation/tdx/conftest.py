"""One simulated Intel for all TDX tests: making keys anew for each would only cost time."""

from __future__ import annotations

import pytest

from attestation.simulator import SimulatedTdx


@pytest.fixture(scope="session")
def sim() -> SimulatedTdx:
    """A platform and its Intel, with keys of this run."""
    return SimulatedTdx.create()
