"""RTMR0, RTMR1 and RTMR2 of a TD that is given its kernel directly, event by event, under one profile.

UEFI 2.10 §38.4.1 puts PCRs 1 and 7 into RTMR0, PCRs 2 to 6 into RTMR1, and 8 to 15 into RTMR2. What makes RTMR0 differ
between hosts (ACPI tables, and SMBIOS where firmware measures it) cannot be computed from an image: it comes from a log
that such a boot has left, or RTMR0 is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attestation.measure import Algorithm, EventLog, LogKind
from attestation.release import ExpectedEvent, LeftOut
from image.errors import ImageError
from image.measure.efi import (
    CALLING,
    IMAGE_SECURITY,
    Measured,
    action,
    boot_variable,
    exits,
    separator,
    variable,
)
from image.measure.pcr import kernel_event, kernel_reads
from image.measure.profiles import Profile
from image.measure.tdvf import Tdvf

_ACPI_EVENTS = 3  # table-loader, rsdp, tables
EV_PLATFORM_CONFIG_FLAGS = 0xA
_EV_HANDOFF_TABLES2 = 0x8000000B
_EV_HANDOFF_TABLES = 0x80000009


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEvents:
    """The digests that a host puts into RTMR0, in order: ACPI's, then SMBIOS' where the profile has it."""

    acpi: tuple[bytes, ...]
    smbios: bytes | None
    source: str


def rtmr1(
    kernel: bytes, initrd: bytes, profile: Profile, *, memory: int, retries: int
) -> tuple[Measured, ...]:
    """What was started, up to the kernel's leaving the firmware behind."""
    started = kernel_event(kernel, initrd, profile, memory=memory)
    return (started, action(CALLING), separator(), *exits(retries))


def rtmr2(initrd: bytes, line: str, profile: Profile) -> tuple[Measured, ...]:
    return kernel_reads(initrd, line, profile)


def rtmr0(
    firmware: Tdvf, profile: Profile, host: HostEvents | None, *, memory: int
) -> tuple[tuple[ExpectedEvent, ...], LeftOut | None]:
    """Every event of RTMR0; those without a digest are the host's, and then RTMR0 is left out, with the reason."""
    before = (firmware.hand_off(memory), firmware.variables(), *_variables(profile), separator())
    after = tuple(boot_variable(name, data) for name, data in profile.boot_variables)
    events = (
        *(event.into("RTMR0") for event in before),
        *_of_host(profile, host),
        *(event.into("RTMR0") for event in after),
    )
    if all(event.sha384 is not None for event in events):
        return events, None
    why = (
        "ACPI tables (and SMBIOS, where this firmware measures it) are made by the host for its devices: "
        "give the log of one boot of this shape, --ccel"
    )
    return events, LeftOut(register="RTMR0", reason=why)


def host_events(log: EventLog, expected: Sequence[ExpectedEvent]) -> HostEvents:
    """The host's events from a log of a TD of the same shape, profile and firmware: all its other events must be as computed."""
    if log.kind is not LogKind.CC or Algorithm.SHA384 not in log.algorithms:
        raise ImageError(
            "the log is none of a TD: expected the content of /sys/firmware/acpi/tables/data/CCEL"
        )
    found = [event for event in log.events if event.register == 1]
    if len(found) != len(expected):
        raise ImageError(f"the log has {len(found)} events in RTMR0, expected {len(expected)}")
    acpi: list[bytes] = []
    smbios = None
    for number, (event, known) in enumerate(zip(found, expected, strict=True), start=1):
        digest = event.digests[Algorithm.SHA384]
        if known.sha384 is None and event.type == EV_PLATFORM_CONFIG_FLAGS:
            acpi.append(digest)
        elif known.sha384 is None and event.type in (_EV_HANDOFF_TABLES, _EV_HANDOFF_TABLES2):
            smbios = digest
        elif known.sha384 != digest:
            wanted = known.sha384.hex() if known.sha384 else "an event of the host's"
            raise ImageError(
                f"event {number} of RTMR0 in the log is another than {known.what}: expected {wanted}, found {digest.hex()}",
                "Shape, profile and firmware must be those of the boot that left the log",
            )
    return HostEvents(acpi=tuple(acpi), smbios=smbios, source="a log of such a boot")


def _of_host(profile: Profile, host: HostEvents | None) -> tuple[ExpectedEvent, ...]:
    names = [f"ACPI {name}" for name in ("table-loader", "rsdp", "tables")] if profile.acpi else []
    digests: list[bytes | None] = list(host.acpi) if host else [None] * len(names)
    if profile.handoff_tables:
        names.append("SMBIOS table")
        digests.append(host.smbios if host else None)
    if len(digests) != len(names):
        raise ImageError(f"the host's events are {len(digests)}, this profile has {len(names)}")
    source = host.source if host else "host's devices; not computed"
    return tuple(
        ExpectedEvent(register="RTMR0", what=name, source=source, sha384=digest)
        for name, digest in zip(names, digests, strict=True)
    )


def _variables(profile: Profile) -> tuple[Measured, ...]:
    """Secure Boot's variables of a firmware that has no keys."""
    return (
        variable("SecureBoot", profile.secure_boot),
        variable("PK", b""),
        variable("KEK", b""),
        variable("db", b"", IMAGE_SECURITY),
        variable("dbx", b"", IMAGE_SECURITY),
    )
