"""What the SNP tests share: one moment, simulated machines whose keys are made once, and `refused_by`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest

from attestation import snp
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.simulator.snp import SimulatedSnp, SnpDefect
from attestation.snp import Product, SigningKey, SnpClaims

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
REPORT_DATA = bytes(range(64))


@cache
def machine(product: Product = Product.GENOA, signer: SigningKey = SigningKey.VCEK) -> SimulatedSnp:
    return SimulatedSnp(product=product, signer=signer)


def claims_of(sim: SimulatedSnp, defect: SnpDefect | None = None, /, **changes: Any) -> SnpClaims:
    return snp.verify(sim.report(REPORT_DATA, **changes), sim.collateral(NOW, defect), [sim.root], NOW)


def refused_by(check: Check, error: type[AttestationError], call: Callable[[], object]) -> None:
    """`call` raises exactly this kind of error, naming exactly this check."""
    with pytest.raises(AttestationError) as caught:
        call()
    assert (type(caught.value), caught.value.check) == (error, check)
