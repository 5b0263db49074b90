"""AMD's SNP product lines, and the TCB whose layout depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from operator import ge

from attestation.checks import Check
from attestation.errors import MalformedError


class Product(StrEnum):
    """The product line: it decides the root key, the TCB layout and the length of the chip id."""

    MILAN = "Milan"
    GENOA = "Genoa"  # with Bergamo and Siena, which chain to the same root
    TURIN = "Turin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security patch levels of the parts that make up the trusted computing base. `fmc` exists on Turin only."""

    fmc: int = 0
    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0

    def parts(self) -> tuple[tuple[str, int], ...]:
        names = ("fmc", "bootloader", "tee", "snp", "microcode")
        return tuple(zip(names, self._levels(), strict=True))

    def _levels(self) -> tuple[int, ...]:
        return (self.fmc, self.bootloader, self.tee, self.snp, self.microcode)

    def at_least(self, floor: Tcb) -> bool:
        return all(map(ge, self._levels(), floor._levels()))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.parts())


def product_of_cpuid(cpuid: tuple[int, int, int]) -> Product | None:
    """The line a family and model belong to, None when this code does not know it. Never guessed."""
    match cpuid:
        case (0x19, model, _) if model <= 0x0F:
            return Product.MILAN
        case (0x19, model, _) if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return Product.GENOA
        case (0x1A, model, _) if model <= 0x1F:
            return Product.TURIN
    return None


def decode_tcb(raw: bytes, product: Product, name: str) -> Tcb:
    """The eight bytes of a TCB_VERSION, whose layout changed with Turin. Reserved bytes must be zero."""
    if product is Product.TURIN:
        fmc, bootloader, tee, snp, *reserved, microcode = raw
    else:
        bootloader, tee, *reserved, snp, microcode = raw
        fmc = 0
    if any(reserved):
        raise MalformedError(
            Check.SNP_REPORT, f"SNP report: {name} {raw.hex()} sets bytes that are reserved on {product}"
        )
    return Tcb(fmc=fmc, bootloader=bootloader, tee=tee, snp=snp, microcode=microcode)
