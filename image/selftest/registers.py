"""What was predicted beside what a boot measured, register by register and event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from attestation.measure import Algorithm, EventLog
from attestation.measure.eventlog import EV_NO_ACTION
from attestation.release import ExpectedEvent
from image.measure.pcr import Pcrs
from image.measure.registers import replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event of a register that is not the predicted one."""

    register: str
    what: str
    source: str

    def __str__(self) -> str:
        return f"{self.register} at “{self.what}”, which {self.source} makes"


def differences(predicted: Pcrs, log: EventLog) -> tuple[Difference, ...]:
    """One for each register that differs, in the order of the prediction."""
    found = []
    for register in dict.fromkeys(event.register for event in predicted.events):
        expected = [event for event in predicted.events if event.register == register]
        first = _first(expected, _digests(log, register))
        if first is not None:
            found.append(Difference(register=register, what=first.what, source=first.source))
    return tuple(found)


def _first(expected: Sequence[ExpectedEvent], digests: Sequence[bytes]) -> ExpectedEvent | None:
    for event, digest in zip_longest(expected, digests):
        if event is None:
            return ExpectedEvent(
                register=expected[-1].register, what="one event more", source="nothing known"
            )
        if event.sha256 != digest:
            return event
    return None


def _digests(log: EventLog, register: str) -> list[bytes]:
    return [
        event.digests[Algorithm.SHA256]
        for event in log.events
        if event.type != EV_NO_ACTION and log.kind.name_of(event.register) == register
    ]


def table(predicted: Pcrs, log: EventLog, quoted: Mapping[int, bytes]) -> list[str]:
    """A line for each register that anything was measured into, and PCR 12, into which nothing may be."""
    values = replay(predicted.events, "sha256") | {"PCR12": bytes(32)}
    left = {left.register: left.reason for left in predicted.left_out}
    lines = []
    for index, found in sorted(quoted.items()):
        name = log.kind.name_of(index)
        value = values.get(name)
        count = len(_digests(log, name))
        if value is not None and name not in left:
            said = "as predicted" if value == found else f"PREDICTED {value.hex()[:16]}…"
            lines.append(f"  {name:6} {found.hex()[:16]}…  {count:2} events  {said}")
        elif count:
            lines.append(
                f"  {name:6} {found.hex()[:16]}…  {count:2} events  not predicted: {left.get(name, '')}"
            )
    return lines
