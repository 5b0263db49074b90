"""What releases expect of a boot, register by register: of each profile and shape, by its events, its values, or both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from attestation.measure.eventlog import DIGEST_BYTES, Algorithm
from attestation.measure.replay import digest
from attestation.release import Expected, ExpectedEvent, Release
from attestation.tdx.policy import TdxMeasurement
from attestation.vtpm import VtpmMeasurement

INVOCATION = b"Exit Boot Services Invocation"
FAILURE = b"Exit Boot Services Returned with Failure"
MAX_RETRIES = 2  # honest firmware may be refused so often before it leaves
SINGLE = ("MRTD", "MEASUREMENT")  # hold one value, and no events


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a cell wants of a register: any of these values, or these events where it has some."""

    values: tuple[bytes, ...]
    events: tuple[ExpectedEvent, ...] = ()
    reason: str = ""


def cells_of(
    release: Release, platform: str, algorithm: Algorithm
) -> Iterator[tuple[Expected, dict[str, Wanted]]]:
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
        own = [one for one in named if all(_agree(one[n], wanted[n]) for n in one.keys() & wanted.keys())]
        more = {name for one in own for name in one} - wanted.keys()  # such as a PCR that stays empty
        for name in sorted(more):
            values = tuple(dict.fromkeys(v for one in own if name in one for v in one[name].values))
            wanted[name] = Wanted(values=values)
        yield cell, wanted
    bare = Expected(platform=platform, profile="", shape="", boot="")
    for one in () if expected else named:
        yield bare, one
    for value in sorted(release.snp) if platform == "snp" and not expected else ():
        yield bare, {"MEASUREMENT": Wanted(values=(value,))}


def _agree(one: Wanted, other: Wanted) -> bool:
    """Whether both could be of one boot."""
    return not (one.values and other.values) or bool(set(one.values) & set(other.values))


def _names(cell: Expected) -> list[str]:
    """The registers of a cell, in order."""
    return list(
        dict.fromkeys((*(e.register for e in cell.events), *(left.register for left in cell.left_out)))
    )


def _named(measurement: TdxMeasurement | VtpmMeasurement) -> dict[str, Wanted]:
    values = {spec.name.upper(): getattr(measurement, spec.name) for spec in fields(measurement)}
    return {name: Wanted(values=(value,)) for name, value in values.items() if value is not None}


def _wanted(name: str, events: tuple[ExpectedEvent, ...], algorithm: Algorithm, reason: str) -> Wanted:
    digests = [digest_of(event, algorithm) for event in events]
    known = [one for one in digests if one is not None]
    if name in SINGLE:
        return Wanted(values=tuple(known), events=events)
    if reason or len(known) < len(events):
        return Wanted(values=(), events=events, reason=reason)
    forms = [known]
    invocation, failure = digest(algorithm, INVOCATION), digest(algorithm, FAILURE)
    if invocation in known:
        at = known.index(invocation)
        forms += [
            [*known[:at], *([invocation, failure] * times), *known[at:]]
            for times in range(1, MAX_RETRIES + 1)
        ]
    return Wanted(values=tuple(_extended(form, algorithm) for form in forms), events=events)


def _extended(digests: Sequence[bytes], algorithm: Algorithm) -> bytes:
    value = bytes(DIGEST_BYTES[algorithm])
    for one in digests:
        value = digest(algorithm, value + one)
    return value


def digest_of(event: ExpectedEvent, algorithm: Algorithm) -> bytes | None:
    return event.sha256 if algorithm is Algorithm.SHA256 else event.sha384


def title_of(release: str, cell: Expected) -> str:
    parts = (("release", release), ("profile", cell.profile), ("shape", cell.shape), ("boot", cell.boot))
    return ", ".join(f"{name} {value}" for name, value in parts if value)
