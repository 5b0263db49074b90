"""Why a boot measured something else, told from real event logs: each case of the table in docs/references.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest

from attestation.measure import Algorithm, Event, EventLog, Registers, Role, parse_log, replay, verify_log
from attestation.measure.claims import MeasuredEvent
from attestation.measure.explain import Boot, Change, Comparison, Register, State, explain
from attestation.measure.replay import digest
from attestation.release import Expected, ExpectedEvent, LeftOut, Release
from attestation.tdx import TdxMeasurement
from attestation.vtpm import VtpmMeasurement
from tests.vectors import needs_vectors, read

NEW, OLD = "qemu10-edk2-2026.08", "qemu7.2-edk2-2022.11"
SOURCES = {Role.KERNEL: "vmlinuz", Role.INITRD: "initrd", Role.COMMAND_LINE: "cmdline"}
OTHER = {a: digest(a, b"another file") for a in (Algorithm.SHA1, Algorithm.SHA256, Algorithm.SHA384)}
PCRS = ("PCR4", "PCR9")


@cache
def real(name: str) -> EventLog:
    return parse_log(read(f"eventlog/boot-{name}.evlog"))


def boot_of(log: EventLog, *, events: bool = True) -> Boot:
    """A machine with this log, as its vTPM's SHA-256 bank shows it."""
    values = replay(log, Algorithm.SHA256)
    claims = verify_log(log, Registers.pcrs(values))
    registers = {log.kind.name_of(i): value for i, value in values.items()}
    by_name: dict[str, list[MeasuredEvent]] = {name: [] for name in registers}
    for event in claims.events:
        by_name[event.register].append(event)
    return Boot(platform="vtpm", registers=registers, events=by_name if events else {})


def cell_of(name: str, registers: Sequence[str] = PCRS) -> Expected:
    """What a calculation would have said of the boot that left this log."""
    shown = boot_of(real(f"direct-{name}"))
    events = [
        ExpectedEvent(
            register=register,
            what=str(event.role),
            source=SOURCES.get(event.role, "firmware"),
            sha256=event.digest,
        )
        for register in registers
        for event in shown.events[register]
    ]
    return Expected(platform="vtpm", profile=name, shape="small", boot="direct", events=tuple(events))


def release(*names: str) -> Release:
    return Release(id="1.4", expected=tuple(cell_of(name) for name in names))


def place(log: EventLog, role: Role) -> int:
    """Where the log has the first event of this role."""
    wanted = next(e for events in boot_of(log).events.values() for e in events if e.role is role)
    return next(i for i, e in enumerate(log.events) if e.digests[Algorithm.SHA256] == wanted.digest)


def edited(log: EventLog, edit: Callable[[list[Event]], object]) -> EventLog:
    events = list(log.events)
    edit(events)
    return replace(log, events=tuple(events))


def other(log: EventLog, role: Role) -> EventLog:
    """The same boot with another file in this role."""
    at = place(log, role)
    return edited(log, lambda e: e.__setitem__(at, replace(e[at], digests=OTHER)))


def compared(log: EventLog, *releases: Release) -> Comparison:
    return explain(boot_of(log), releases or (release(NEW),))[0]


def differing(comparison: Comparison) -> Register:
    (found,) = (r for r in comparison.registers if r.state is not State.SAME)
    return found


@needs_vectors
@pytest.mark.parametrize("name", [NEW, OLD])
def test_an_honest_boot(name: str) -> None:
    """What was predicted is what happened, register by register, under its own profile."""
    found = explain(boot_of(real(f"direct-{name}")), (release(NEW, OLD),))
    assert found[0].same
    assert f"profile {name}" in found[0].title
    assert not found[1].same


@needs_vectors
@pytest.mark.parametrize(
    ("role", "register"), [(Role.KERNEL, "PCR4"), (Role.COMMAND_LINE, "PCR9"), (Role.INITRD, "PCR9")]
)
def test_another_file(role: Role, register: str) -> None:
    """The first event that differs is that of the file which is another one, and the file is named."""
    found = differing(compared(other(real(f"direct-{NEW}"), role)))
    assert (found.name, found.state) == (register, State.DIFFERS)
    assert found.difference is not None
    assert found.difference.change is Change.CHANGED
    assert found.difference.expected is not None
    assert found.difference.expected.source == SOURCES[role]
    assert found.difference.found is not None
    assert found.difference.found.digest == OTHER[Algorithm.SHA256]
    assert found.difference.known == ()


@needs_vectors
def test_a_file_of_another_release() -> None:
    """Where the digest stands elsewhere in the references, that is said."""
    log = other(real(f"direct-{NEW}"), Role.KERNEL)
    cell = cell_of(NEW)
    changed = {"vmlinuz": OTHER[Algorithm.SHA256], "cmdline": b"\x01" * 32, "initrd": b"\x02" * 32}
    events = tuple(replace(e, sha256=changed.get(e.source, e.sha256)) for e in cell.events)
    older = Release(id="1.3", expected=(replace(cell, events=events),))
    found = differing(compared(log, release(NEW), older))
    assert found.difference is not None
    assert any("kernel or boot loader of release 1.3, profile" in known for known in found.difference.known)


@needs_vectors
def test_another_profile() -> None:
    """The same files under another QEMU and firmware: the command line is the profile's, and the kernel's header too."""
    found = compared(real(f"direct-{OLD}"))
    changed = {r.name: r.difference for r in found.registers if r.difference is not None}
    assert set(changed) == {"PCR4", "PCR9"}
    lines = changed["PCR9"]
    assert lines.expected is not None
    assert lines.expected.source == "cmdline"


@needs_vectors
@pytest.mark.parametrize(
    ("edit", "change"),
    [
        (lambda e, at: e.insert(at, replace(e[at], digests=OTHER)), Change.ADDED),
        (lambda e, at: e.pop(at), Change.MISSING),
        (lambda e, at: e.__setitem__(slice(at, at + 2), e[at : at + 2][::-1]), Change.ORDER),
    ],
    ids=["added", "missing", "order"],
)
def test_other_events(edit: Callable[[list[Event], int], object], change: Change) -> None:
    """One too many, one too few, and the right ones the wrong way round are told apart."""
    log = real(f"direct-{NEW}")
    at = place(log, Role.COMMAND_LINE)
    found = differing(compared(edited(log, lambda e: edit(e, at))))
    assert found.difference is not None
    assert (found.difference.position, found.difference.change) == (1, change)


@needs_vectors
def test_a_log_that_ends_early() -> None:
    """And one that goes on: what comes after everything expected is named too."""
    log = real(f"direct-{NEW}")
    at = place(log, Role.INITRD)
    ends = differing(compared(edited(log, lambda e: e.pop(at))))
    assert ends.difference is not None
    assert (ends.difference.change, ends.difference.found) == (Change.ENDS, None)
    more = differing(compared(edited(log, lambda e: e.append(replace(e[at], digests=OTHER)))))
    assert more.difference is not None
    assert (more.difference.change, more.difference.expected) == (Change.ADDED, None)


@needs_vectors
def test_tried_again() -> None:
    """A real boot whose first exit from boot services was refused is the same boot, by its log and by its value."""
    log = real("disk-uki-qemu10")
    failure = digest(Algorithm.SHA256, b"Exit Boot Services Returned with Failure")
    (register,) = {e.register for e in log.events if e.digests[Algorithm.SHA256] == failure}
    name = log.kind.name_of(register)
    shown = boot_of(log)
    once: list[MeasuredEvent] = []
    for event in shown.events[name]:
        if event.digest == failure:
            once.pop()
        else:
            once.append(event)
    assert len(once) == len(shown.events[name]) - 2
    events = tuple(ExpectedEvent(register=name, what="", source="", sha256=e.digest) for e in once)
    plain = Release(id="1", expected=(replace(cell_of(NEW), events=events),))
    assert explain(shown, (plain,))[0].same
    assert explain(boot_of(log, events=False), (plain,))[0].same


@needs_vectors
def test_without_a_log() -> None:
    """The register that differs and what makes it; that it is another profile's value, when it is."""
    log = other(real(f"direct-{NEW}"), Role.INITRD)
    found = differing(explain(boot_of(log, events=False), (release(NEW),))[0])
    assert (found.name, found.difference) == ("PCR9", None)
    assert found.sources == ("cmdline", "initrd")
    mixed = boot_of(real(f"direct-{NEW}"), events=False)
    old = boot_of(real(f"direct-{OLD}"), events=False)
    mixed = replace(mixed, registers={**mixed.registers, "PCR9": old.registers["PCR9"]})
    (known,) = differing(explain(mixed, (release(NEW, OLD),))[0]).known
    assert known == f"PCR9 of release 1.4, profile {OLD}, shape small, boot direct"


@needs_vectors
def test_what_cannot_be_computed() -> None:
    """An event without a digest fits any; without a log nothing is said of its register."""
    cell = cell_of(NEW)
    open_ = tuple(replace(e, sha256=None) if e.source == "initrd" else e for e in cell.events)
    known = Release(id="1", expected=(replace(cell, events=open_),))
    log = other(real(f"direct-{NEW}"), Role.INITRD)
    assert compared(log, known).same
    blind = differing(explain(boot_of(log, events=False), (known,))[0])
    assert blind.state is State.NOT_PREDICTED
    assert differing(compared(other(log, Role.COMMAND_LINE), known)).state is State.DIFFERS


@needs_vectors
def test_what_is_left_out() -> None:
    """A register with a reason is not held against a machine; its first events are, where they are known."""
    cell = cell_of(NEW)
    reason = LeftOut(register="PCR9", reason="the stub adds files")
    begun = tuple(e for e in cell.events if e.source != "initrd")
    part = Release(id="1", expected=(replace(cell, events=begun, left_out=(reason,)),))
    log = real(f"direct-{NEW}")
    assert differing(compared(log, part)).reason == "the stub adds files"
    assert compared(other(log, Role.INITRD), part).same
    assert differing(compared(other(log, Role.COMMAND_LINE), part)).state is State.DIFFERS
    unseen = LeftOut(register="PCR0", reason="the cloud's")
    whole = Release(id="1", expected=(replace(cell, left_out=(unseen,)),))
    assert differing(compared(log, whole)).state is State.NOT_PREDICTED


@needs_vectors
def test_a_pcr_that_has_to_stay_empty() -> None:
    """A register that the release names without events of its own is compared by its value."""
    wanted = replace(release(NEW), vtpm=(VtpmMeasurement(pcr12=bytes(32)),))
    shown = boot_of(real(f"direct-{NEW}"))
    clean = replace(shown, registers={**shown.registers, "PCR12": bytes(32)})
    assert explain(clean, (wanted,))[0].same
    added = replace(shown, registers={**shown.registers, "PCR12": b"\x01" * 32})
    assert differing(explain(added, (wanted,))[0]).name == "PCR12"
    assert differing(explain(shown, (wanted,))[0]).state is State.NOT_SHOWN


def test_one_value() -> None:
    """MRTD and the launch digest have no events: they are another cell's value, or nobody's."""
    cells = tuple(
        Expected(
            platform="snp",
            profile="qemu",
            shape=shape,
            boot="direct",
            events=(
                ExpectedEvent(register="MEASUREMENT", what="launch digest", source="all", sha384=value * 48),
            ),
        )
        for shape, value in (("small", b"\x01"), ("h200x1", b"\x02"))
    )
    known = Release(id="1.4", expected=cells)
    for value, shape in ((b"\x01", "small"), (b"\x02", "h200x1")):
        found = explain(Boot(platform="snp", registers={"MEASUREMENT": value * 48}), (known,))
        assert found[0].same
        assert found[0].cell.shape == shape
        assert found[1].registers[0].known == (
            f"launch digest of release 1.4, profile qemu, shape {shape}, boot direct",
        )
    unknown = explain(Boot(platform="snp", registers={"MEASUREMENT": b"\x03" * 48}), (known,))
    assert (unknown[0].same, unknown[0].registers[0].known) == (False, ())
    td = Boot(platform="tdx", registers={"MRTD": b"\x01" * 48})
    assert explain(td, (known,)) == ()


def test_bare_values() -> None:
    """References without events are compared by their values: registers that differ are counted, and no more is known."""
    one = TdxMeasurement(mrtd=b"\x01" * 48, rtmr1=b"\x02" * 48)
    bare = Release(id="1", tdx=(one, replace(one, rtmr1=b"\x03" * 48)), snp=frozenset({b"\x04" * 48}))
    found = explain(Boot(platform="tdx", registers={"MRTD": b"\x01" * 48, "RTMR1": b"\x03" * 48}), (bare,))
    assert [c.same for c in found] == [True, False]
    guest = explain(Boot(platform="snp", registers={"MEASUREMENT": b"\x04" * 48}), (bare,))
    assert guest[0].same
