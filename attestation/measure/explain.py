"""Why a boot measured something else: the first event of each register that is not what the references expect.

Nothing is judged here, and nothing has to be verified before: what a machine shows is held against what releases
say of their boots (`Release.expected`), cell by cell of profile and shape, and the nearest cell is explained. A register
that holds one value (MRTD, an SEV-SNP launch digest) has no events: it is found among the cells, or it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum

from attestation.measure.claims import MeasuredEvent
from attestation.measure.eventlog import DIGEST_BYTES, Algorithm
from attestation.measure.replay import digest
from attestation.release import Expected, ExpectedEvent, Release
from attestation.tdx.policy import TdxMeasurement
from attestation.vtpm import VtpmMeasurement

_INVOCATION = b"Exit Boot Services Invocation"
_FAILURE = b"Exit Boot Services Returned with Failure"
_MAX_RETRIES = 2  # honest firmware may be refused so often before it leaves
_SINGLE = ("MRTD", "MEASUREMENT")  # hold one value, and no events


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
    reason: str = ""  # why nothing is predicted


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
    def title(self) -> str:
        return _title(self.release, self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a cell wants of a register: any of these values, or these events where it has some."""

    values: tuple[bytes, ...]
    events: tuple[ExpectedEvent, ...] = ()
    reason: str = ""


def explain(boot: Boot, releases: Sequence[Release]) -> tuple[Comparison, ...]:
    """`boot` beside every cell of its platform, the nearest first; none where the references have nothing of its kind."""
    cells = [
        (release.id, cell, wanted)
        for release in releases
        for cell, wanted in _cells(release, boot.platform, boot.algorithm)
    ]
    known: dict[bytes, dict[str, None]] = {}  # what each digest and value is elsewhere, in order and once
    for name, cell, wanted in cells:
        for register, one in wanted.items():
            for value in one.values:
                known.setdefault(value, {})[f"{register} of {_title(name, cell)}"] = None
            for event in one.events if register not in _SINGLE else ():
                if (found := _digest(event, boot.algorithm)) is not None:
                    known.setdefault(found, {})[f"{event.what} of {_title(name, cell)}"] = None
    compared = [
        Comparison(
            release=name,
            cell=cell,
            registers=tuple(_register(boot, register, one, known) for register, one in wanted.items()),
        )
        for name, cell, wanted in cells
    ]
    return tuple(sorted(compared, key=_distance))


def _distance(comparison: Comparison) -> tuple[int, int]:
    """Fewer registers that differ come first; of as many, those that differ later."""
    bad = [r for r in comparison.registers if r.state in (State.DIFFERS, State.NOT_SHOWN)]
    return len(bad), -sum(r.difference.position for r in bad if r.difference is not None)


def _cells(
    release: Release, platform: str, algorithm: Algorithm
) -> Iterator[tuple[Expected, dict[str, _Wanted]]]:
    """What is expected on a platform, event by event; where a release does not say, its bare values."""
    measurements: tuple[TdxMeasurement | VtpmMeasurement, ...] = ()
    if platform != "snp":
        measurements = release.tdx if platform == "tdx" else release.vtpm
    named = [_named(measurement) for measurement in measurements]
    expected = [cell for cell in release.expected if cell.platform == platform]
    for cell in expected:
        left = {left.register: left.reason for left in cell.left_out}
        by_name = {name: tuple(e for e in cell.events if e.register == name) for name in _names(cell)}
        wanted = {
            name: _wanted(name, by_name.get(name, ()), algorithm, left.get(name, "")) for name in by_name
        }
        for name in sorted(
            {name for one in named for name in one} - set(wanted)
        ):  # such as a PCR that stays empty
            values = tuple(dict.fromkeys(v for one in named if name in one for v in one[name].values))
            wanted[name] = _Wanted(values=values)
        yield cell, wanted
    bare = Expected(platform=platform, profile="", shape="", boot="")
    for one in () if expected else named:
        yield bare, one
    for value in sorted(release.snp) if platform == "snp" and not expected else ():
        yield bare, {"MEASUREMENT": _Wanted(values=(value,))}


def _names(cell: Expected) -> list[str]:
    """The registers of a cell, in order."""
    return list(
        dict.fromkeys((*(e.register for e in cell.events), *(left.register for left in cell.left_out)))
    )


def _named(measurement: TdxMeasurement | VtpmMeasurement) -> dict[str, _Wanted]:
    values = {spec.name.upper(): getattr(measurement, spec.name) for spec in fields(measurement)}
    return {name: _Wanted(values=(value,)) for name, value in values.items() if value is not None}


def _wanted(name: str, events: tuple[ExpectedEvent, ...], algorithm: Algorithm, reason: str) -> _Wanted:
    digests = [_digest(event, algorithm) for event in events]
    known = [one for one in digests if one is not None]
    if name in _SINGLE:
        return _Wanted(values=tuple(known), events=events)
    if reason or len(known) < len(events):
        return _Wanted(values=(), events=events, reason=reason)
    forms = [known]
    invocation, failure = digest(algorithm, _INVOCATION), digest(algorithm, _FAILURE)
    if invocation in known:
        at = known.index(invocation)
        forms += [
            [*known[:at], *([invocation, failure] * times), *known[at:]]
            for times in range(1, _MAX_RETRIES + 1)
        ]
    return _Wanted(values=tuple(_extended(form, algorithm) for form in forms), events=events)


def _extended(digests: Sequence[bytes], algorithm: Algorithm) -> bytes:
    value = bytes(DIGEST_BYTES[algorithm])
    for one in digests:
        value = digest(algorithm, value + one)
    return value


def _register(boot: Boot, name: str, wanted: _Wanted, known: Mapping[bytes, Mapping[str, None]]) -> Register:
    found, difference, reason = boot.registers.get(name), None, wanted.reason
    if found in wanted.values:
        state = State.SAME
    elif not wanted.values and not wanted.events:
        state = State.NOT_PREDICTED
    elif found is None:
        state = State.NOT_SHOWN
    elif name in boot.events and name not in _SINGLE and wanted.events:
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
    return Register(
        name=name,
        state=state,
        expected=wanted.values[0] if wanted.values else None,
        found=found,
        difference=difference,
        sources=tuple(dict.fromkeys(e.source for e in wanted.events if e.source)),
        known=tuple(known.get(found, ())) if differs and found is not None else (),
        reason=reason,
    )


def _first(
    expected: Sequence[ExpectedEvent],
    shown: Sequence[MeasuredEvent],
    algorithm: Algorithm,
    known: Mapping[bytes, Mapping[str, None]],
) -> Difference | None:
    """Where the two part for the first time."""
    found = _without_retries(shown, algorithm)
    wanted = [_digest(event, algorithm) for event in expected]
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
    failure, invocation = digest(algorithm, _FAILURE), digest(algorithm, _INVOCATION)
    kept: list[MeasuredEvent] = []
    retried = 0
    for event in shown:
        tried = bool(kept) and kept[-1].digest == invocation
        if event.digest == failure and tried and retried < _MAX_RETRIES:
            retried += 1
            kept.pop()
        else:
            kept.append(event)
    return kept


def _digest(event: ExpectedEvent, algorithm: Algorithm) -> bytes | None:
    return event.sha256 if algorithm is Algorithm.SHA256 else event.sha384


def _title(release: str, cell: Expected) -> str:
    parts = (("release", release), ("profile", cell.profile), ("shape", cell.shape), ("boot", cell.boot))
    return ", ".join(f"{name} {value}" for name, value in parts if value)
