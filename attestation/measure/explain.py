"""Why a boot measured something else: the first event of each register that is not what the references expect.

Nothing is judged here, and nothing has to be verified before: what a machine shows is held against what releases
say of their boots (`Release.expected`), cell by cell of profile and shape, and the nearest cell is explained. A register
that holds one value (MRTD, an SEV-SNP launch digest) has no events: it is found among the cells, or it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from attestation.measure.cells import (
    FAILURE,
    INVOCATION,
    MAX_RETRIES,
    SINGLE,
    Wanted,
    cells_of,
    digest_of,
    title_of,
)
from attestation.measure.claims import MeasuredEvent, Role
from attestation.measure.eventlog import Algorithm
from attestation.measure.replay import digest
from attestation.release import Expected, ExpectedEvent, Release


class State(StrEnum):
    """How one register stands to what is expected of it."""

    SAME = "as expected"
    DIFFERS = "differs"
    NOT_PREDICTED = "not predicted"
    NOT_SHOWN = "not in the evidence"


class Change(StrEnum):
    """What happened at the first event that differs."""

    CHANGED = "changed"  # another digest in its place
    ADDED = "added"  # an event that is not expected, and then what is
    MISSING = "missing"  # what is expected does not come; what follows it does
    ORDER = "out of order"  # both come, in another order
    ENDS = "the log ends"  # before everything expected came


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What one machine shows of its boot."""

    platform: str  # "tdx", "snp", "vtpm"
    registers: Mapping[str, bytes]
    events: Mapping[str, Sequence[MeasuredEvent]] = field(
        default_factory=dict
    )  # where a log explains the register

    @property
    def algorithm(self) -> Algorithm:
        return Algorithm.SHA256 if self.platform == "vtpm" else Algorithm.SHA384


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event of a register that differs: what should be there, and what was."""

    position: int  # among the register's events, from 1; tried exits from boot services are one
    change: Change
    expected: ExpectedEvent | None
    found: MeasuredEvent | None
    known: tuple[str, ...] = ()  # where else in the references the found digest stands


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One register beside what is expected of it."""

    name: str
    state: State
    expected: bytes | None = None  # None where it cannot be computed
    found: bytes | None = None
    difference: Difference | None = None  # None also where no log tells the events
    sources: tuple[str, ...] = ()  # the files and settings that make it
    known: tuple[str, ...] = ()  # where else in the references the found value stands
    what: str = ""  # which of several values it is, where it is one of them
    reason: str = ""  # why nothing is predicted
    near: int = 0  # how many events it has in common, less those that it has not
    alike: int = 0  # how much of it is the same that is not the same in every boot


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One cell of one release, register by register."""

    release: str
    cell: Expected
    registers: tuple[Register, ...]

    @property
    def same(self) -> bool:
        """Whether something was predicted, and all of that is as it was."""
        states = {r.state for r in self.registers}
        return State.SAME in states and not states & {State.DIFFERS, State.NOT_SHOWN}

    @property
    def alike(self) -> bool:
        """Whether it has anything in common with what was measured, but for the marks that every boot makes."""
        return any(register.alike for register in self.registers)

    @property
    def distance(self) -> tuple[bool, bool, int]:
        """What fits comes first, then what has more events in common; last what has nothing."""
        return not self.same, not self.alike, -sum(register.near for register in self.registers)

    @property
    def title(self) -> str:
        return title_of(self.release, self.cell)


def explain(boot: Boot, releases: Sequence[Release]) -> tuple[Comparison, ...]:
    """`boot` beside every cell of its platform, the nearest first; none where the references have nothing of its kind."""
    cells = [
        (release.id, cell, wanted)
        for release in releases
        for cell, wanted in cells_of(release, boot.platform, boot.algorithm)
    ]
    known: dict[bytes, dict[str, None]] = {}  # what each digest and value is elsewhere, in order and once
    for name, cell, wanted in cells:
        for register, one in wanted.items():
            for value in () if register in SINGLE and one.events else one.values:
                known.setdefault(value, {})[f"{register} of {title_of(name, cell)}"] = None
            for event in one.events:
                if (found := digest_of(event, boot.algorithm)) is not None:
                    known.setdefault(found, {})[f"{event.what} of {title_of(name, cell)}"] = None
    compared = [
        Comparison(
            release=name,
            cell=cell,
            registers=tuple(_register(boot, register, one, known) for register, one in wanted.items()),
        )
        for name, cell, wanted in cells
    ]
    return tuple(sorted(compared, key=lambda one: one.distance))


def _register(boot: Boot, name: str, wanted: Wanted, known: Mapping[bytes, Mapping[str, None]]) -> Register:
    found, difference, reason = boot.registers.get(name), None, wanted.reason
    if found in wanted.values:
        state = State.SAME
    elif not wanted.values and not wanted.events:
        state = State.NOT_PREDICTED
    elif found is None:
        state = State.NOT_SHOWN
    elif name in boot.events and name not in SINGLE and wanted.events:
        difference = _first(wanted.events, boot.events[name], boot.algorithm, known)
        if wanted.reason and difference is not None and difference.expected is None:
            difference = None  # what comes after cannot be predicted
        same = State.NOT_PREDICTED if wanted.reason else State.SAME
        state = same if difference is None else State.DIFFERS
    elif not wanted.values:
        state, reason = State.NOT_PREDICTED, reason or "an event cannot be computed, and no log shows it"
    else:
        state = State.DIFFERS
    differs = state is State.DIFFERS and found is not None
    near = {State.SAME: 1, State.NOT_PREDICTED: 0}.get(state, -1)
    alike = int(state is State.SAME and any(found or b""))
    if wanted.events and name in boot.events and name not in SINGLE:
        shown = _without_retries(boot.events[name], boot.algorithm)
        near = _in_common([digest_of(e, boot.algorithm) for e in wanted.events], [e.digest for e in shown])
        telling = {e.digest for e in shown if e.role is not Role.MARK}
        alike = sum(digest_of(e, boot.algorithm) in telling for e in wanted.events)
    return Register(
        name=name,
        state=state,
        expected=wanted.values[0] if wanted.values else None,
        found=found,
        difference=difference,
        sources=tuple(dict.fromkeys(e.source for e in wanted.events if e.source)),
        known=tuple(known.get(found, ())) if differs and found is not None else (),
        what=next((e.what for e in wanted.events if found == digest_of(e, boot.algorithm)), ""),
        reason=reason,
        near=near,
        alike=alike,
    )


def _in_common(wanted: Sequence[bytes | None], measured: Sequence[bytes]) -> int:
    """Events that both have, less those of either alone; one that cannot be computed is like any."""
    both = (Counter(one for one in wanted if one is not None) & Counter(measured)).total()
    both += min(wanted.count(None), len(measured) - both)
    return both - (len(wanted) - both) - (len(measured) - both)


def _first(
    expected: Sequence[ExpectedEvent],
    shown: Sequence[MeasuredEvent],
    algorithm: Algorithm,
    known: Mapping[bytes, Mapping[str, None]],
) -> Difference | None:
    """Where the two part for the first time."""
    found = _without_retries(shown, algorithm)
    wanted = [digest_of(event, algorithm) for event in expected]
    measured = [event.digest for event in found]
    for at in range(max(len(wanted), len(measured))):
        if at < len(wanted) and at < len(measured) and wanted[at] in (None, measured[at]):
            continue
        return Difference(
            position=at + 1,
            change=_change(wanted[at:], measured[at:]),
            expected=expected[at] if at < len(expected) else None,
            found=found[at] if at < len(found) else None,
            known=tuple(known.get(measured[at], ())) if at < len(measured) else (),
        )
    return None


def _change(wanted: Sequence[bytes | None], measured: Sequence[bytes]) -> Change:
    """What happened, from where the two part."""
    if not measured:
        return Change.ENDS
    if not wanted:
        return Change.ADDED
    later, sooner = wanted[0] in measured[1:], measured[0] in wanted[1:]
    if later and sooner:
        return Change.ORDER
    if later:
        return Change.ADDED
    return Change.MISSING if sooner else Change.CHANGED


def _without_retries(shown: Sequence[MeasuredEvent], algorithm: Algorithm) -> list[MeasuredEvent]:
    """The events without exits from boot services that were refused, as firmware may be, and the attempt after each."""
    failure, invocation = digest(algorithm, FAILURE), digest(algorithm, INVOCATION)
    kept: list[MeasuredEvent] = []
    retried = 0
    for event in shown:
        tried = bool(kept) and kept[-1].digest == invocation
        if event.digest == failure and tried and retried < MAX_RETRIES:
            retried += 1
            kept.pop()
        else:
            kept.append(event)
    return kept
