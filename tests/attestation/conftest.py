"""A vendor on this machine, and a fetcher that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation._download import Patience
from attestation.fetch import Fetcher
from tests.attestation.fetching import NOW, Waits, gpu_machine, snp_machine, tdx_machine
from tests.vendor import Vendor, amd_pages, intel_pages, responder, rim_pages, vendor_service


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    """A vendor that answers rightly, until a test spoils it."""
    with vendor_service(intel_pages(tdx_machine()[2]) | amd_pages(snp_machine(), NOW)) as service:
        yield service


@pytest.fixture
def waits() -> Waits:
    """The pauses that were asked for, none of them taken."""
    return Waits()


@pytest.fixture
def fetcher(vendor: Vendor, waits: Waits, tmp_path: Path) -> Iterator[Fetcher]:
    """A fetcher with a cache, asking the local vendor."""
    patience = Patience(sleep=waits, connect_s=60, read_s=60, total_s=60)
    with Fetcher(sources=vendor.sources, cache=tmp_path / "cache", patience=patience) as made:
        yield made


@pytest.fixture
def nvidia(vendor: Vendor) -> Vendor:
    """The vendor, with NVIDIA's services."""
    machine, evidence = gpu_machine()
    collateral = machine.collateral(NOW)
    vendor.pages |= rim_pages(evidence, collateral)
    vendor.answer = responder(collateral)
    return vendor
