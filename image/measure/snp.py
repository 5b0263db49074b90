"""AMD SEV-SNP launch digests, by AMD's own rules as the library `sev-snp-measure` has them.

The digest covers firmware, the hashes of kernel, initrd and command line (`kernel-hashes=on`), and the first state of every
vCPU: their number, what type of CPU they are said to be, and which VMM made them. So there is one for each of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.ovmf import OVMF, SectionType
from sevsnpmeasure.vmm_types import VMMType

from image.errors import ImageError

CPU_TYPES = ("EPYC-v4", "EPYC-Milan", "EPYC-Genoa", "EPYC-Turin")
GUEST_FEATURES = 0x1  # SNP is active, and nothing else (AMD APM volume 2, SEV_FEATURES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """Files of a direct boot."""

    kernel: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """One launch digest, and what it is for."""

    cpus: int
    cpu_type: str
    vmm: str
    guest_features: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.cpus} vCPUs of {self.cpu_type}, {self.vmm}, guest features {self.guest_features:#x}"


def takes_hashes(firmware: Path) -> bool:
    """Whether this is a firmware for SEV-SNP that checks kernel, initrd and command line against measured hashes."""
    try:
        return bool(OVMF(str(firmware)).has_metadata_section(SectionType.SNP_KERNEL_HASHES))
    except (AssertionError, KeyError, RuntimeError, ValueError):
        return False


def launch_digests(
    firmware: Path,
    files: Direct,
    *,
    cpus: Sequence[int],
    cpu_types: Sequence[str] = CPU_TYPES,
    vmms: Sequence[str] = ("QEMU",),
    guest_features: Sequence[int] = (GUEST_FEATURES,),
) -> tuple[Launched, ...]:
    """Every combination of vCPU count, CPU type, VMM and guest features."""
    if not takes_hashes(firmware):
        raise ImageError(
            f"{firmware} does not check the hashes of a kernel", "Give the firmware of Debian's ovmf-amdsev"
        )
    known = {kind.name.lower(): kind for kind in VMMType}
    for name in cpu_types:
        if name not in vcpu_types.CPU_SIGS:
            raise ImageError(f"no CPU type {name!r}", f"Known are {', '.join(vcpu_types.CPU_SIGS)}")
    for name in vmms:
        if name.lower() not in known:
            raise ImageError(f"no VMM {name!r}", f"Known are {', '.join(k.name for k in VMMType)}")
    return tuple(
        Launched(
            cpus=count,
            cpu_type=cpu_type,
            vmm=vmm,
            guest_features=features,
            digest=guest.snp_calc_launch_digest(
                count,
                vcpu_types.CPU_SIGS[cpu_type],
                str(firmware),
                str(files.kernel),
                str(files.initrd),
                files.command_line,
                features,
                "",
                known[vmm.lower()],
            ),
        )
        for count in cpus
        for cpu_type in cpu_types
        for vmm in vmms
        for features in guest_features
    )
