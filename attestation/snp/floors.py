"""TCB floors: the least firmware and microcode accepted for each product.

AMD publishes no machine-readable TCB status, so the floors come from its security bulletins and age: a policy that
lists its own replaces them all. Microcode levels count per stepping (Milan's B1 and B2 cannot be compared), so a
floor may name one CPUID.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attestation.snp.product import Product, Tcb


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbFloor:
    """The least levels for one product, or for one CPUID (family, model, stepping: "191101") of it."""

    product: Product
    cpuid: bytes | None = field(default=None, metadata={"size": 3})
    fmc: int = 0
    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0

    @property
    def tcb(self) -> Tcb:
        return Tcb(
            fmc=self.fmc, bootloader=self.bootloader, tee=self.tee, snp=self.snp, microcode=self.microcode
        )


AMD_FLOORS = (
    TcbFloor(product=Product.MILAN, snp=0x1D),  # AMD-SB-3016, AMD-SB-3030
    TcbFloor(product=Product.GENOA, snp=0x1B),  # AMD-SB-3016, AMD-SB-3020
    TcbFloor(product=Product.TURIN, snp=0x04),  # AMD-SB-3020
    # AMD-SB-3027, which contains the microcode of AMD-SB-3019
    TcbFloor(product=Product.GENOA, cpuid=b"\x19\x11\x01", microcode=0x56),
    TcbFloor(product=Product.GENOA, cpuid=b"\x19\x11\x02", microcode=0x51),
    TcbFloor(product=Product.TURIN, cpuid=b"\x1a\x02\x01", microcode=0x51),
)
ANY_TCB = tuple(TcbFloor(product=product) for product in Product)


def floors_for(
    floors: Sequence[TcbFloor], product: Product, cpuid: tuple[int, int, int] | None
) -> list[TcbFloor]:
    """Those that apply; all of them have to be met, and none at all means that the product is not accepted."""
    here = None if cpuid is None else bytes(cpuid)
    return [floor for floor in floors if floor.product is product and floor.cpuid in (None, here)]
