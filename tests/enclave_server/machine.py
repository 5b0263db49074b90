"""A machine with a TEE, as a gateway sees one: the kernel's interface mounted, the vendors' services on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from attestation.roots import Root, Roots
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.tdx import SimulatedTdx
from enclave_server.evidence.hardware import Hardware, Places
from enclave_server.settings import Settings
from tests.servers import gateway_settings
from tests.tsm import Kernel, tsm
from tests.vendor import Vendor, amd_pages, intel_pages, vendor_service

_NONE: tuple[Root, ...] = ()


@cache
def intel() -> SimulatedTdx:
    return SimulatedTdx.create()


@dataclass
class Box:
    """One machine. `open()` is what a gateway does when it starts."""

    kernel: Kernel
    vendor: Vendor
    folder: Path
    roots: Roots
    settings: Settings
    opened: list[Hardware] = field(default_factory=list)

    def open(self, **changes: Any) -> Hardware:
        settings = self.settings.model_copy(update=changes)
        places = Places(
            tsm=self.kernel.folder,
            sev_guest=self.folder / "sev-guest",
            tdx_guest=self.folder / "tdx_guest",
            acpi=self.folder / "acpi",
            registers=self.kernel.folder,
        )
        self.opened.append(Hardware(settings, places=places, roots=self.roots))
        return self.opened[-1]


@contextmanager
def machine(folder: Path, tee: str = "tdx", **changes: Any) -> Iterator[Box]:
    """A TD or an SNP guest that is well, until a test spoils it."""
    now, snp = datetime.now(UTC), SimulatedSnp()
    td = tee == "tdx"
    pages = intel_pages(intel().collateral(now)) if td else amd_pages(snp, now)
    root = intel().root if td else snp.root
    sign, provider = (intel().quote, "tdx_guest") if td else (snp.report, "sev_guest")
    with tsm(folder / "report", sign, provider) as kernel, vendor_service(pages) as vendor:
        where = {"amd_kds_url": vendor.url, "nvidia_rim_url": f"{vendor.url}/rim", "nvidia_ocsp_url": f"{vendor.url}/ocsp"}  # fmt: skip
        box = Box(
            kernel=kernel,
            vendor=vendor,
            folder=folder,
            roots=Roots(
                intel=(root,) if td else _NONE,
                amd=_NONE if td else (root,),
                nvidia_device=_NONE,
                nvidia_rim=_NONE,
                aws=_NONE,
            ),
            settings=gateway_settings(
                folder, tee=tee, **{**where, "pccs_url": f"{vendor.url}/pccs", **changes}
            ),
        )
        for path in [path for path in vendor.pages if td]:  # a PCCS has them under other paths
            new = path.replace("/sgx/", "/sgx/certification/v4/").replace("/tdx/", "/tdx/certification/v4/")
            vendor.pages[f"/pccs{new}"] = vendor.pages.pop(path)
        if td:
            vendor.pages["/pccs/sgx/certification/v4/rootcacrl"] = vendor.pages.pop("/pccs/root.der")
        try:
            yield box
        finally:
            for hardware in box.opened:
                hardware.close()
