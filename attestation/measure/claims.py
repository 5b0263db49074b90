"""A log that replays becomes claims: which digests went into which register, and what each of them is called.

A replay proves the digests and their order, and the data of an event whose digest covers it. It proves no *label*:
type and description of other events are the log's own word, and a host may write another. So a policy compares
digests, and is complete only when every event of a register is one that it knows (`EventLogPolicy`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import MappingProxyType

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.measure.dstack import SYSTEM_READY, DstackClaims, decode_event, read_events
from attestation.measure.eventlog import EV_NO_ACTION, Algorithm, Event, EventLog, LogKind
from attestation.measure.replay import Registers, digest, initial, replay

EV_EVENT_TAG = 0x6
EV_IPL = 0xD
EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003

# who measures what: UEFI 2.10 §38.4.1 for RTMRs, TCG PFP §3.3.4 for PCRs
_FIRMWARE = {LogKind.CC: {1}, LogKind.TPM: {0, 1, 2, 3, 6, 7}}
_RUNTIME = {LogKind.CC: {4}, LogKind.TPM: set[int]()}

# Linux' EFI stub tags what it measures (drivers/firmware/efi/libstub/efistub.h)
_TAG_INITRD, _TAG_LOAD_OPTIONS = (0x8F3B22EC).to_bytes(4, "little"), (0x8F3B22ED).to_bytes(4, "little")
_TAG_AAEL = b"LEAA"  # CoCo's runtime events: this tag, a size, and "domain operation content"
_SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
)
_KNOWN_DATA = (
    bytes(4),
    b"\xff" * 4,
    b"Calling EFI Application from Boot Option",
    b"Returning from EFI Application from Boot Option",
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Failure",  # firmware may try again: an honest boot may log this
    b"Exit Boot Services Returned with Success",
    *(
        name.encode() + b"\0" for name in _SECTIONS
    ),  # systemd-stub measures a section's name, then the section
)


class Role(StrEnum):
    """What the log calls an event."""

    FIRMWARE = "firmware configuration"
    MARK = "boot mark"  # a digest that means the same everywhere: separators, EFI actions, names of sections
    KERNEL = "kernel or boot loader"
    INITRD = "initrd"
    COMMAND_LINE = "command line"
    DSTACK = "dstack event"
    RUNTIME = "run-time event"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEvent:
    """One event of a log that replayed. Register, order and digest are proven, `role` is the log's own word."""

    register: str
    role: Role
    digest: bytes
    data: bytes | None  # only when the digest covers it


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLogClaims:
    """What was measured into the registers of a verified quote, in order."""

    algorithm: Algorithm
    events: tuple[MeasuredEvent, ...]
    left_out: tuple[str, ...]  # registers of which nothing is claimed, by the caller's wish
    dstack: DstackClaims | None

    def digests(self, role: Role) -> tuple[bytes, ...]:
        return tuple(e.digest for e in self.events if e.role is role)

    @property
    def command_lines(self) -> tuple[str, ...]:
        """Kernel command lines whose text is in the log and covered, as GRUB logs them. Others are digests only."""
        lines = (e.data for e in self.events if e.role is Role.COMMAND_LINE)
        return tuple(line.rstrip(b"\0").decode(errors="replace") for line in lines if line is not None)


def verify_log(log: EventLog, registers: Registers, *, leave_out: Collection[int] = ()) -> EventLogClaims:
    """Claims from a log that led to exactly these registers of an already verified quote.

    Every register that the log or the quote has must agree, but those that the caller names in `leave_out`
    (an operating system goes on to extend some); of those nothing is claimed.
    """
    if log.kind is not registers.kind:
        raise VerificationError(
            Check.EVENTLOG_REPLAY, f"a log of a {log.kind} cannot explain a {registers.kind}"
        )
    replayed = replay(log, registers.algorithm)
    for register in sorted((set(replayed) | set(registers.values)) - set(leave_out)):
        name, found = log.kind.name_of(register), registers.values.get(register)
        if found is None:
            raise VerificationError(
                Check.EVENTLOG_REPLAY, f"the log extends {name}, which the quote does not cover"
            )
        expected = replayed.get(register) or initial(log, register, registers.algorithm)
        if found != expected:
            raise VerificationError(
                Check.EVENTLOG_REPLAY,
                f"{name} is the first register that differs: the log leads to {expected.hex()}, "
                f"the quote says {found.hex()}",
            )
    return _claims(log, registers.algorithm, leave_out)


def _claims(log: EventLog, algorithm: Algorithm, leave_out: Collection[int]) -> EventLogClaims:
    events: list[MeasuredEvent] = []
    own: list[tuple[str, bytes]] = []
    handed_over = False  # from the first event that is not provably dstack's own, RTMR3 is the app's
    for event in log.events:
        if event.type == EV_NO_ACTION or event.register in leave_out:
            continue
        role, data = _role(log.kind, event, algorithm), _covered(event, algorithm)
        if role is Role.RUNTIME and not handed_over:
            decoded = decode_event(data) if data is not None else None
            handed_over = decoded is None or decoded[0] == SYSTEM_READY
            if decoded:
                own.append(decoded)
                role = Role.DSTACK
        name = log.kind.name_of(event.register)
        events.append(MeasuredEvent(register=name, role=role, digest=event.digests[algorithm], data=data))
    return EventLogClaims(
        algorithm=algorithm,
        events=tuple(events),
        left_out=tuple(log.kind.name_of(register) for register in sorted(leave_out)),
        dstack=read_events(own) if own else None,
    )


def _covered(event: Event, algorithm: Algorithm) -> bytes | None:
    """The measured bytes, when the log has them: the event's data, or the text in it that GRUB measures."""
    for data in _candidates(event):
        if digest(algorithm, data) == event.digests[algorithm]:
            return data
    return None


def _candidates(event: Event) -> Iterator[bytes]:
    yield event.data
    if event.type == EV_IPL:
        _, found, text = event.data.partition(b" ")  # "grub_cmd TEXT", "kernel_cmdline: TEXT"
        if found:
            text = text.partition(b"\0")[0]  # in the log one more byte of memory may follow the NUL
            yield from (text, text + b"\0")


def _role(kind: LogKind, event: Event, algorithm: Algorithm) -> Role:
    if event.digests[algorithm] in _known(algorithm):
        return Role.MARK
    if event.register in _FIRMWARE[kind]:
        return Role.FIRMWARE
    if event.register in _RUNTIME[kind]:
        return Role.RUNTIME
    if event.type == EV_EFI_BOOT_SERVICES_APPLICATION:
        return Role.KERNEL
    if event.type == EV_EVENT_TAG:
        return {_TAG_INITRD: Role.INITRD, _TAG_LOAD_OPTIONS: Role.COMMAND_LINE}.get(
            event.data[:4], Role.OTHER
        )
    return _role_by_name(event.data) if event.type == EV_IPL else Role.OTHER


_NAMES = MappingProxyType(
    {
        b"grub_linuxefi Kernel": Role.KERNEL,
        b"grub_linuxefi Initrd": Role.INITRD,
        b"grub_kernel_cmdline": Role.COMMAND_LINE,
        b"kernel_cmdline:": Role.COMMAND_LINE,
        ".linux\0".encode("utf-16le"): Role.KERNEL,
        ".initrd\0".encode("utf-16le"): Role.INITRD,
        ".cmdline\0".encode("utf-16le"): Role.COMMAND_LINE,
    }
)


def _role_by_name(data: bytes) -> Role:
    return next((role for name, role in _NAMES.items() if data.startswith(name)), Role.OTHER)


@cache
def _known(algorithm: Algorithm) -> frozenset[bytes]:
    return frozenset(digest(algorithm, data) for data in _KNOWN_DATA)
