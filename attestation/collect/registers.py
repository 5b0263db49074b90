"""A TD's own registers and the log of its boot: RTMR3, MRCONFIGID and the CCEL table (Linux 6.16 and later, 5.18 for CCEL)."""

from __future__ import annotations

import os
from pathlib import Path

from attestation.collect._errors import failed, unavailable
from attestation.measure.eventlog import MAX_LOG_BYTES

REGISTERS = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
ACPI = Path("/sys/firmware/acpi/tables")
RTMR3 = "rtmr3:sha384"
REGISTER_BYTES = 48


def read_register(name: str, *, folder: Path = REGISTERS) -> bytes:
    """The present value of `rtmr3:sha384`, `mrconfigid` and their like."""
    try:
        value = (folder / name).read_bytes()
    except OSError as exc:
        raise failed(f"{folder / name}", exc, "A TD with Linux 6.16 or later has it") from exc
    if len(value) != REGISTER_BYTES:
        raise unavailable(f"{folder / name} has {len(value)} bytes, expected {REGISTER_BYTES}")
    return value


def extend_rtmr3(digest: bytes, *, folder: Path = REGISTERS) -> None:
    """RTMR3 becomes SHA-384(RTMR3 ‖ digest). Nothing but a reboot takes it back."""
    if len(digest) != REGISTER_BYTES:
        raise ValueError(f"RTMR3 is extended by {REGISTER_BYTES} bytes, not {len(digest)}")
    file = folder / RTMR3
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, digest)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise failed(f"{file}", exc, "A TD with Linux 6.16 or later can extend it, as root") from exc


def read_event_log(*, folder: Path = ACPI) -> bytes:
    """The firmware's log of the boot (CCEL), as bytes of the area that the table points to; empty where there is none."""
    try:
        with (folder / "data" / "CCEL").open("rb") as file:
            log = file.read(MAX_LOG_BYTES + 1)
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise failed(f"{folder / 'data' / 'CCEL'}", exc) from exc
    if len(log) > MAX_LOG_BYTES:
        raise unavailable(f"the CCEL log has more than {MAX_LOG_BYTES} bytes")
    return log
