"""Profiles: a VMM and a firmware together, and what the two do to a boot's measurements.

The same kernel, initrd and command line measure differently under each. A profile is a record of what boots showed
(its tests replay their logs); a pair that is not listed has not been seen, and nothing is predicted for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from uuid import UUID

from image.errors import ImageError
from image.measure.efi import firmware_option

RETRIES = 3  # forms: none, one or two refusals of ExitBootServices

_BOOT_MANAGER_MENU = UUID("eec25bdc-67f2-4d95-b1d5-f81b2039d11d")
_FRONT_PAGE = UUID("462caa21-7614-4503-836e-8ab6f4662331")
_UI_APP = firmware_option("UiApp", 0x109, _FRONT_PAGE)
_MENU = firmware_option("BootManagerMenuApp", 0x109, _BOOT_MANAGER_MENU)
_SETUP = firmware_option("EFI Firmware Setup", 0x101, _FRONT_PAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How one VMM with one firmware starts a kernel that it is given."""

    name: str
    firmware: str  # the edk2 release
    fills_in_header: bool  # the VMM writes into the kernel's header, and the firmware measures that
    line: str  # what the kernel gets; {} is the command line that was asked for
    boot_variables: tuple[tuple[str, bytes], ...]
    secure_boot: bytes  # the content of the variable of that name, where there are no keys
    acpi: bool  # the firmware measures ACPI tables
    handoff_tables: bool  # and the SMBIOS table, which has the machine's name and memory in it

    def command_line(self, line: str) -> str:
        return self.line.format(line)


_EDK2_2022 = Profile(
    name="qemu7.2-edk2-2022.11",
    firmware="2022.11",
    fills_in_header=True,
    line="{} initrd=initrd",
    boot_variables=(("BootOrder", b"\0\0"), ("Boot0000", _UI_APP)),
    secure_boot=b"\0",
    acpi=False,
    handoff_tables=False,
)

PROFILES = {
    profile.name: profile
    for profile in (
        _EDK2_2022,
        replace(_EDK2_2022, name="qemu10-edk2-2022.11"),  # the same with either VMM
        Profile(
            name="qemu10-edk2-2025.02",
            firmware="2025.02",
            fills_in_header=False,
            line="{} initrd=initrd",
            boot_variables=(("BootOrder", b"\0\0"), ("Boot0000", _UI_APP)),
            secure_boot=b"",
            acpi=True,
            handoff_tables=False,
        ),
        Profile(
            name="qemu10-edk2-2026.08",
            firmware="2026.08",
            fills_in_header=False,
            line="initrd=initrd {}",
            boot_variables=(("BootOrder", b"\0\0\1\0"), ("Boot0000", _MENU), ("Boot0001", _SETUP)),
            secure_boot=b"",
            acpi=True,
            handoff_tables=True,
        ),
    )
}


def profile_named(name: str) -> Profile:
    if name not in PROFILES:
        raise ImageError(f"no profile {name!r}", f"Known are {', '.join(PROFILES)}")
    return PROFILES[name]
