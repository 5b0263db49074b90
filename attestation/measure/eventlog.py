"""Event logs of a measured boot: what the bytes say. Untrusted until `verify_log` has replayed them.

    header event (SHA-1 form)   register u32 ‖ type u32 = EV_NO_ACTION ‖ zeros 20 ‖ size u32 ‖ Spec ID event
    each event                  register u32 ‖ type u32 ‖ count u32 ‖ count × (algorithm u16 ‖ digest) ‖ size u32 ‖ data

TCG PC Client Platform Firmware Profile §10 ("crypto agile log"), also the format of the ACPI table CCEL of
confidential VMs, whose register numbers are 1 to 4 for RTMR0 to RTMR3. Firmware fills the rest of its log area
with 0xFF (or zeros), which may follow the last event and nothing else may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from attestation._reader import Reader
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_LOG_BYTES = 1024 * 1024
MAX_EVENTS = 8192
MAX_ALGORITHMS = 8

EV_NO_ACTION = 0x3
EV_SEPARATOR = 0x4
_SIGNATURE = b"Spec ID Event03\0"
_STARTUP_LOCALITY = b"StartupLocality\0"


class Algorithm(IntEnum):
    """TCG Algorithm Registry. An algorithm that is not here has no known digest size, so its log cannot be read."""

    SHA1 = 0x04
    SHA256 = 0x0B
    SHA384 = 0x0C
    SHA512 = 0x0D
    SM3_256 = 0x12  # read, never replayed


DIGEST_BYTES = {
    Algorithm.SHA1: 20,
    Algorithm.SHA256: 32,
    Algorithm.SHA384: 48,
    Algorithm.SHA512: 64,
    Algorithm.SM3_256: 32,
}


class LogKind(StrEnum):
    """Whose registers a log is about."""

    CC = "confidential VM"  # 1 to 4 are RTMR0 to RTMR3; 0 would be MRTD, which is never extended
    TPM = "TPM"  # 0 to 23 are PCRs

    @property
    def registers(self) -> int:
        return 5 if self is LogKind.CC else 24

    def name_of(self, register: int) -> str:
        if self is LogKind.TPM:
            return f"PCR{register}"
        return f"RTMR{register - 1}" if register else "MRTD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry. `data` describes what was measured; only a digest over `data` makes it more than a description."""

    register: int
    type: int
    digests: Mapping[Algorithm, bytes]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLog:
    """Every event in order. What counts is what the registers say after a replay."""

    kind: LogKind
    algorithms: tuple[Algorithm, ...]
    events: tuple[Event, ...]
    startup_locality: int = 0  # the first PCR starts with it (TCG PFP §10.4.5.3)


def parse_log(data: bytes) -> EventLog:
    """A TCG2 or CCEL log from its bytes. Judges nothing; a log of one event less parses too, and will not replay."""
    if len(data) > MAX_LOG_BYTES:
        raise _error(f"{len(data)} bytes, the limit is {MAX_LOG_BYTES}")
    reader = Reader(data, Check.EVENTLOG_FORMAT, "event log")
    kind, algorithms = _header(reader)
    events: list[Event] = []
    locality = 0
    while reader.remaining and not _is_padding(data, reader.offset):
        if len(events) == MAX_EVENTS:
            raise _error(f"more than {MAX_EVENTS} events")
        event = _event(reader, kind, algorithms)
        if event.type == EV_NO_ACTION and event.data.startswith(_STARTUP_LOCALITY):
            locality = _locality(event.data)
        events.append(event)
    check_separators(kind, events)
    return EventLog(kind=kind, algorithms=algorithms, events=tuple(events), startup_locality=locality)


def check_separators(kind: LogKind, events: Iterable[Event]) -> None:
    """One EV_SEPARATOR draws the line between firmware and what it starts; a second one would move the line.

    In a confidential VM PCR1 and PCR7 share RTMR0 (UEFI 2.10 §38.4.1), so that one may have two.
    """
    for register, count in Counter(e.register for e in events if e.type == EV_SEPARATOR).items():
        if count > (2 if (kind, register) == (LogKind.CC, 1) else 1):
            raise _error(f"{count} separators in {kind.name_of(register)}")


def _header(reader: Reader) -> tuple[LogKind, tuple[Algorithm, ...]]:
    register, event_type = reader.uint(4, "register"), reader.uint(4, "type")
    if register not in (0, 1) or event_type != EV_NO_ACTION:
        raise reader.error(f"expected a header event, found type {event_type:#x} in register {register}")
    reader.zeros(20, "the header's digest")
    spec = reader.nested(reader.uint(4, "header size"), "header")
    spec.expect(_SIGNATURE, "signature")
    spec.take(4, "platform class")
    spec.expect(b"\x00\x02", "version 2.0")  # minor before major
    spec.take(2, "errata and size of a machine word")
    count = spec.uint(4, "number of algorithms")
    if not 1 <= count <= MAX_ALGORITHMS:
        raise spec.error(f"{count} algorithms, expected 1 to {MAX_ALGORITHMS}")
    algorithms = tuple(_algorithm(spec) for _ in range(count))
    if len(set(algorithms)) != count:
        raise spec.error("an algorithm is declared twice")
    spec.take(spec.uint(1, "vendor size"), "vendor information")
    spec.end()
    return (LogKind.CC if register else LogKind.TPM), algorithms


def _algorithm(spec: Reader) -> Algorithm:
    number, size = spec.uint(2, "algorithm"), spec.uint(2, "digest size")
    if number not in list(Algorithm):
        raise spec.error(f"algorithm {number:#06x} is not known")
    algorithm = Algorithm(number)
    if size != DIGEST_BYTES[algorithm]:
        raise spec.error(f"{algorithm.name} has {DIGEST_BYTES[algorithm]} bytes, the log says {size}")
    return algorithm


def _event(reader: Reader, kind: LogKind, algorithms: tuple[Algorithm, ...]) -> Event:
    register, event_type = reader.uint(4, "register"), reader.uint(4, "type")
    if register >= kind.registers:
        raise reader.error(
            f"register {register} before offset {reader.offset}: a {kind} has {kind.registers}"
        )
    count = reader.uint(4, "number of digests")
    if count != len(algorithms):
        raise reader.error(
            f"{count} digests before offset {reader.offset}, the header declares {len(algorithms)}"
        )
    digests: dict[Algorithm, bytes] = {}
    for _ in range(count):
        number = reader.uint(2, "algorithm")
        if number not in algorithms or number in digests:
            raise reader.error(
                f"algorithm {number:#06x} before offset {reader.offset} is undeclared or repeated"
            )
        digests[Algorithm(number)] = reader.take(DIGEST_BYTES[Algorithm(number)], "digest")
    data = reader.take(reader.uint(4, "event size"), "event data")
    if event_type == EV_SEPARATOR and len(data) != 4:
        raise reader.error(f"a separator has 4 bytes, found {len(data)} before offset {reader.offset}")
    return Event(register=register, type=event_type, digests=digests, data=data)


def _is_padding(data: bytes, offset: int) -> bool:
    """Whether the log ends here: from `offset` on everything is 0xFF, or everything is zero."""
    head = data[offset : offset + 8]  # as register and type, no event begins so
    if head.strip(b"\xff") and head.strip(b"\0"):
        return False
    if data[offset:].strip(head[:1]):
        raise _error(f"something follows the padding that begins at offset {offset}")
    return True


def _locality(data: bytes) -> int:
    if len(data) != len(_STARTUP_LOCALITY) + 1 or data[-1] not in (0, 3, 4):
        raise _error("a StartupLocality event must say 0, 3 or 4")
    return data[-1]


def _error(detail: str) -> MalformedError:
    return MalformedError(Check.EVENTLOG_FORMAT, f"event log: {detail}")
