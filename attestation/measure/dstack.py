"""dstack's event logs: a JSON list of boot events (RTMR0 to RTMR2) and of events of its own (RTMR3).

    {"imr": 3, "event_type": 134217729, "digest": "…", "event": "compose-hash", "event_payload": "…"}

The digest of an event of its own is SHA-384( LE32(0x08000001) ‖ ":" ‖ name ‖ ":" ‖ payload ). It is computed here
and never taken from the log, where some versions leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha384
from typing import Any

from attestation._json import parse_json
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.measure.eventlog import (
    MAX_EVENTS,
    MAX_LOG_BYTES,
    Algorithm,
    Event,
    EventLog,
    LogKind,
    check_separators,
)

EV_DSTACK = 0x08000001
SYSTEM_READY = "system-ready"
_PREFIX = EV_DSTACK.to_bytes(4, "little") + b":"
_RTMR3 = 4  # as a register of a log
_FIELDS = {"imr", "event_type", "digest", "event", "event_payload"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackClaims:
    """What dstack measured before it handed over to the app. None: not measured, or not before that."""

    app_id: bytes | None = None
    compose_hash: bytes | None = None
    instance_id: bytes | None = None
    os_image_hash: bytes | None = None
    key_provider: str | None = None  # JSON text, as measured
    ready: bool = False  # whether the app had been started


def parse_dstack_log(data: bytes) -> EventLog:
    """A dstack log from its JSON. Judges nothing, but a digest that contradicts its own event is no log."""
    entries = parse_json(data, Check.EVENTLOG_FORMAT, "dstack event log", limit=MAX_LOG_BYTES)
    if not isinstance(entries, list) or len(entries) > MAX_EVENTS:
        raise _error(f"expected a list of at most {MAX_EVENTS} events")
    events = tuple(_event(entry, f"event {i}") for i, entry in enumerate(entries))
    check_separators(LogKind.CC, events)
    return EventLog(kind=LogKind.CC, algorithms=(Algorithm.SHA384,), events=events)


def encode_event(name: str, payload: bytes) -> bytes:
    """The bytes that dstack hashes for one of its events."""
    return _PREFIX + name.encode() + b":" + payload


def decode_event(data: bytes) -> tuple[str, bytes] | None:
    """Name and payload of bytes that `encode_event` makes; None for any others."""
    name, colon, payload = data.removeprefix(_PREFIX).partition(b":")
    if not data.startswith(_PREFIX) or not colon or not name.isascii():
        return None
    return name.decode("ascii"), payload


def read_events(events: Iterable[tuple[str, bytes]]) -> DstackClaims:
    """Claims of the events before the app was started, each name at most once."""
    found: dict[str, bytes] = {}
    for name, payload in events:
        if name in found:
            raise VerificationError(
                Check.EVENTLOG_DSTACK, f"{name!r} is measured twice before {SYSTEM_READY!r}"
            )
        found[name] = payload
    provider = found.get("key-provider")
    try:
        key_provider = None if provider is None else provider.decode()
    except UnicodeDecodeError as exc:
        raise VerificationError(Check.EVENTLOG_DSTACK, "the payload of 'key-provider' is not text") from exc
    return DstackClaims(
        app_id=found.get("app-id"),
        compose_hash=found.get("compose-hash"),
        instance_id=found.get("instance-id"),
        os_image_hash=found.get("os-image-hash"),
        key_provider=key_provider,
        ready=SYSTEM_READY in found,
    )


def _event(entry: Any, what: str) -> Event:
    if not isinstance(entry, dict) or not set(entry) <= _FIELDS or not _FIELDS - {"digest"} <= set(entry):
        raise _error(f"{what} must be an object with {sorted(_FIELDS)}, of which only digest may be missing")
    imr, event_type, name = entry["imr"], entry["event_type"], entry["event"]
    if (
        type(imr) is not int
        or not 0 <= imr <= 3
        or type(event_type) is not int
        or not 0 <= event_type < 1 << 32
    ):
        raise _error(f"{what}: imr must be 0 to 3 and event_type a 32-bit number")
    if not isinstance(name, str):
        raise _error(f"{what}: event must be a text")
    data, digest = _hex(entry["event_payload"], what), _hex(entry.get("digest", ""), what)
    if event_type == EV_DSTACK:
        if imr + 1 != _RTMR3 or not name or ":" in name or not name.isascii():
            raise _error(f"{what}: an event of dstack's own belongs to RTMR3 and has a name without ':'")
        data = encode_event(name, data)
        if digest not in (b"", computed := sha384(data).digest()):
            raise _error(f"{what}: its digest is not that of {name!r} and its payload")
        digest = computed
    if len(digest) != 48:
        raise _error(f"{what}: a boot event needs a SHA-384 digest")
    return Event(register=imr + 1, type=event_type, digests={Algorithm.SHA384: digest}, data=data)


def _hex(value: Any, what: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError) as exc:
        raise _error(f"{what}: digest and event_payload must be hex") from exc


def _error(detail: str) -> MalformedError:
    return MalformedError(Check.EVENTLOG_FORMAT, f"dstack event log: {detail}")
