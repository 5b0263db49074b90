"""Event logs made by hand, in the real formats."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from hashlib import sha1, sha256, sha384
from typing import Any

from attestation.measure.claims import EV_EFI_BOOT_SERVICES_APPLICATION, EV_EVENT_TAG, EV_IPL
from attestation.measure.eventlog import EV_SEPARATOR

HASHES = {4: sha1, 11: sha256, 12: sha384}
KERNEL, INITRD = b"kernel image", b"initrd image"
COMMAND_LINE = "console=ttyS0 roothash=1234"
ACPI = b"ACPI tables"
COMPOSE, APP, PROVIDER = sha256(b"compose").digest(), b"\x0a" * 20, '{"name":"kms","id":"00"}'

Entry = tuple[int, int, bytes, bytes]  # register, type, what is measured, what the log says


def header(kind: int = 1, algorithms: Sequence[tuple[int, int]] = ((12, 48),), **changes: Any) -> bytes:
    """The first event; `kind` 1 makes a CCEL, 0 a TPM's log."""
    spec: bytes = changes.get("signature", b"Spec ID Event03\0") + struct.pack(
        "<IBBBB", 0, 0, changes.get("major", 2), 0, 2
    )
    spec += struct.pack("<I", changes.get("count", len(algorithms)))
    spec += b"".join(struct.pack("<HH", *a) for a in algorithms) + changes.get("vendor", b"\0")
    return struct.pack("<II20sI", kind, changes.get("type", 3), changes.get("digest", b""), len(spec)) + spec


def entry(
    register: int, event_type: int, measured: bytes, data: bytes, algorithms: Sequence[int] = (12,)
) -> bytes:
    """One event whose digests are over `measured`."""
    digests = b"".join(struct.pack("<H", a) + HASHES[a](measured).digest() for a in algorithms)
    return (
        struct.pack("<III", register, event_type, len(algorithms))
        + digests
        + struct.pack("<I", len(data))
        + data
    )


def boot() -> list[Entry]:
    """A direct kernel boot in a TD, as the registers of a CCEL have it."""
    return [
        (1, 0xA, ACPI, b"ACPI DATA"),
        (1, EV_SEPARATOR, bytes(4), bytes(4)),
        (2, EV_EFI_BOOT_SERVICES_APPLICATION, KERNEL, b"device path"),
        (
            2,
            0x80000007,
            b"Calling EFI Application from Boot Option",
            b"Calling EFI Application from Boot Option",
        ),
        (2, EV_SEPARATOR, bytes(4), bytes(4)),
        (
            3,
            EV_EVENT_TAG,
            COMMAND_LINE.encode("utf-16le") + b"\0\0",
            b'\xed";\x8f\x1a\0\0\0LOADED_IMAGE::LoadOptions\0',
        ),
        (3, EV_EVENT_TAG, INITRD, b'\xec";\x8f\r\0\0\0Linux initrd\0'),
        (2, 0x80000007, b"Exit Boot Services Invocation", b"Exit Boot Services Invocation"),
        (
            2,
            0x80000007,
            b"Exit Boot Services Returned with Success",
            b"Exit Boot Services Returned with Success",
        ),
    ]


def log(entries: Sequence[Entry]) -> bytes:
    return header() + b"".join(entry(*e) for e in entries)


def grub(text: str) -> Entry:
    """A command as newer GRUB logs it."""
    return (3, EV_IPL, text.encode(), b"grub_cmd: " + text.encode() + b"\0")


def dstack(name: str, payload: bytes, **changes: Any) -> dict[str, Any]:
    """One of dstack's own events, without a digest."""
    made = {"imr": 3, "event_type": 0x08000001, "event": name, "event_payload": payload.hex()}
    return {k: v for k, v in (made | changes).items() if v is not ...}


def dstack_events() -> list[dict[str, Any]]:
    return [
        dstack("system-preparing", b""),
        dstack("app-id", APP),
        dstack("compose-hash", COMPOSE),
        dstack("key-provider", PROVIDER.encode()),
        dstack("system-ready", b""),
    ]


def dstack_log(events: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps(list(events)).encode()
