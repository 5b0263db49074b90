"""PCRs 4, 9, 11 and 12 of a vTPM: of a kernel that firmware is given directly, and of a unified kernel image on a disk.

Held against boots under three firmwares. A cloud's own firmware follows the same clauses (TCG PFP §3.3.4), and its PCRs 0 to 3 and
7 are its own; those are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attestation.release import ExpectedEvent, LeftOut
from attestation.vtpm import VtpmMeasurement
from image.errors import ImageError
from image.measure.authenticode import Pe, parse_pe
from image.measure.boot_header import filled_in
from image.measure.efi import (
    CALLING,
    Measured,
    action,
    exits,
    load_options,
    measured,
    partition_table,
    separator,
)
from image.measure.profiles import Profile
from image.measure.registers import replay

# systemd's src/fundamental/uki.h: in this order, whatever their order in the file; .pcrsig is left out of its own digest
_ORDER = (
    *(".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", ".pcrpkey"),
    *(".profile", ".dtbauto", ".hwids"),
)
_SINCE = {".uname": 253, ".sbat": 253, ".ucode": 256, ".profile": 257, ".dtbauto": 257, ".hwids": 257}
_STUB = re.compile(rb"systemd-stub (\d+)")
_INITRD_AS_IT_IS = 252  # later stubs add files of their own to the initrd
_LEFT_OUT = (
    ("PCR0", "the firmware, which is the cloud's"),
    ("PCR1", "the firmware's configuration and its variables"),
    ("PCR2", "firmware of devices"),
    ("PCR3", "configuration of devices"),
    (
        "PCR5",
        "the partition table, which clouds rewrite, and how often the kernel asked to leave boot services",
    ),
    ("PCR6", "the maker's"),
    ("PCR7", "Secure Boot's state and keys"),
    ("PCR10", "the kernel's own measurements (IMA)"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pcrs:
    """What one way of booting measures."""

    events: tuple[ExpectedEvent, ...]
    left_out: tuple[LeftOut, ...]

    def measurement(self) -> VtpmMeasurement:
        """The PCRs whose every event is known, and PCR 12, which nothing may extend."""
        left = {left.register for left in self.left_out}
        known = {
            register.lower(): value
            for register, value in replay(self.events, "sha256").items()
            if value is not None and register not in left
        }
        return VtpmMeasurement(**{**known, "pcr12": bytes(32)})


def direct(kernel: bytes, initrd: bytes, line: str, profile: Profile, *, memory: int) -> Pcrs:
    """A kernel that the VMM hands to the firmware."""
    events = (
        *(
            event.into("PCR4")
            for event in (kernel_event(kernel, initrd, profile, memory=memory), *_started())
        ),
        *(event.into("PCR9") for event in kernel_reads(initrd, line, profile)),
    )
    return Pcrs(events=events, left_out=_left_out())


def unified(image: bytes, disk: bytes = b"") -> Pcrs:
    """A unified kernel image that the firmware finds on a disk, of which `disk` is the beginning."""
    uki = parse_pe(image, "enclave.efi")
    version = stub_version(uki)
    kernel, line = uki.section(".linux"), uki.section(".cmdline")
    if kernel is None or line is None:
        raise ImageError("enclave.efi holds no kernel, or no command line")
    inner = parse_pe(kernel, "the kernel in enclave.efi")
    events = [
        event.into("PCR4") for event in (*_started(), application(uki, "unified kernel image", "enclave.efi"))
    ]
    events += [event.into("PCR11") for event in sections(uki, version)]
    events.append(application(inner, "kernel", "enclave.efi .linux").into("PCR4"))
    text = line.rstrip(b"\0").decode("ascii", "replace")
    events.append(load_options(text, "enclave.efi .cmdline").into("PCR9"))
    if disk:
        events += [event.into("PCR5") for event in (separator(), partition_table(disk), *exits(0))]
    initrd = uki.section(".initrd")
    if version <= _INITRD_AS_IT_IS and initrd is not None:
        events.append(measured("initrd", "enclave.efi .initrd", initrd).into("PCR9"))
        return Pcrs(events=tuple(events), left_out=_left_out())
    why = f"systemd-stub {version} adds files of its own to the initrd that the kernel measures"
    return Pcrs(events=tuple(events), left_out=_left_out(LeftOut(register="PCR9", reason=why)))


def sections(uki: Pe, version: int) -> tuple[Measured, ...]:
    """What systemd-stub measures into PCR 11: for each section its name, then its content."""
    found: list[Measured] = []
    for name in _ORDER:
        content = uki.section(name) if version >= _SINCE.get(name, 0) else None
        if content is not None:
            found.append(measured(f"name {name}", "enclave.efi", name.encode() + b"\0"))
            found.append(measured(f"section {name}", f"enclave.efi {name}", content))
    return tuple(found)


def stub_version(uki: Pe) -> int:
    """Which systemd-stub it is: what it measures depends on it."""
    found = _STUB.search(uki.section(".sdmagic") or b"")
    if found is None:
        raise ImageError("enclave.efi does not say which systemd-stub it begins with")
    return int(found[1])


def kernel_event(kernel: bytes, initrd: bytes, profile: Profile, *, memory: int) -> Measured:
    """The kernel, as this VMM hands it to this firmware."""
    if profile.fills_in_header:
        kernel = filled_in(kernel, initrd_size=len(initrd), memory=memory)
    return application(parse_pe(kernel, "vmlinuz"), "kernel", "vmlinuz")


def kernel_reads(initrd: bytes, line: str, profile: Profile) -> tuple[Measured, ...]:
    """What the kernel's own EFI stub measures."""
    return load_options(profile.command_line(line), "cmdline"), measured("initrd", "initrd", initrd)


def application(image: Pe, what: str, source: str) -> Measured:
    return Measured(
        what=what,
        source=source,
        sha256=image.authenticode("sha256"),
        sha384=image.authenticode("sha384"),
    )


def _started() -> tuple[Measured, ...]:
    return action(CALLING), separator()


def _left_out(*more: LeftOut) -> tuple[LeftOut, ...]:
    return (*(LeftOut(register=register, reason=reason) for register, reason in _LEFT_OUT), *more)


def forms(pcrs: Sequence[Pcrs]) -> tuple[VtpmMeasurement, ...]:
    """What these ways of booting are accepted by, each once."""
    return tuple(dict.fromkeys(p.measurement() for p in pcrs))
