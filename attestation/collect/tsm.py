"""Evidence through the kernel's one interface for every confidential VM: configfs-tsm (Linux 6.7 and later).

    mkdir report/NAME → write inblob → read outblob (and auxblob) → generation moved by one: ours → rmdir

Each call has an entry of its own, which is removed again. Documentation/ABI/testing/configfs-tsm-report.
The kernel gives a new entry's files to root, whoever makes it: for a gateway that is another user, root prepares entries at boot and
gives it their files (`prepared-0`, …). Then a call takes one that nobody else has locked, and leaves it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from attestation.collect._errors import failed, unavailable

TSM = Path("/sys/kernel/config/tsm/report")
INBLOB_BYTES = 64
MAX_BLOB_BYTES = 256 * 1024  # a quote has 5 to 8 KiB, a certificate table up to 16
MOST_PREPARED = 8
_CHUNK = 64 * 1024
_MAX_TEXT = 64
_AGAIN = {errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}
_MOUNT = "Mount configfs (mount -t configfs none /sys/kernel/config) and load tdx_guest or sev-guest"


class Provider(StrEnum):
    """Who answers, as the kernel names it."""

    TDX = "tdx_guest"
    SNP = "sev_guest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """How often and how long to ask. A read that the kernel does not return from is not interrupted."""

    attempts: int = 5
    total_s: float = 30.0
    first_wait_s: float = 0.05  # doubled each time
    sleep: Callable[[float], None] = field(default=time.sleep)


@dataclass(frozen=True, slots=True)
class TsmReport:
    """What one entry gave. `auxblob` is SNP's table of certificates, and empty elsewhere."""

    outblob: bytes
    auxblob: bytes


class _Again(Exception):  # noqa: N818  # an attempt to repeat, never seen outside
    pass


def prepared_name(number: int) -> str:
    """Of an entry that is there from boot on."""
    return f"prepared-{number}"


def collect_tsm(
    provider: Provider, report_data: bytes, *, folder: Path = TSM, tries: Tries | None = None
) -> TsmReport:
    """Evidence over 64 bytes from the TEE that must be here. Raises UnavailableError with what helps."""
    if len(report_data) != INBLOB_BYTES:
        raise ValueError(f"report data has {INBLOB_BYTES} bytes, not {len(report_data)}")
    tries = tries or Tries()
    end, reason = time.monotonic() + tries.total_s, ""
    for attempt in range(tries.attempts):
        try:
            with _entry(folder) as entry:
                return _ask(entry, provider, report_data)
        except _Again as exc:
            reason = str(exc)
        except OSError as exc:
            if exc.errno not in _AGAIN:
                raise failed(f"{folder}", exc) from exc
            reason = str(failed(f"{folder}", exc))
        if time.monotonic() >= end:
            break
        tries.sleep(tries.first_wait_s * 2**attempt)
    raise unavailable(f"no evidence after {tries.attempts} attempts or {tries.total_s:g} s: {reason}")


@contextmanager
def _entry(folder: Path) -> Iterator[Path]:
    """An entry that nobody else uses meanwhile: a prepared one where there are any, else a new one, removed again whatever happens."""
    prepared = [
        entry for number in range(MOST_PREPARED) if (entry := folder / prepared_name(number)).is_dir()
    ]
    with _free(prepared) if prepared else _new(folder) as entry:
        yield entry


@contextmanager
def _free(prepared: list[Path]) -> Iterator[Path]:
    for entry in prepared:
        descriptor = os.open(entry / "generation", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        try:
            yield entry
        finally:
            os.close(descriptor)
        return
    raise _Again("all prepared entries are in use")


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    entry = folder / f"attested-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        entry.mkdir()
    except FileNotFoundError as exc:
        raise unavailable(f"there is no {folder}", _MOUNT) from exc
    try:
        yield entry
    finally:
        with suppress(OSError):  # it costs the kernel a little memory; the answer matters more
            entry.rmdir()


def _ask(entry: Path, provider: Provider, report_data: bytes) -> TsmReport:
    found = _read(entry / "provider", _MAX_TEXT).decode(errors="replace").strip()
    if found != provider:
        raise unavailable(
            f"the kernel's evidence comes from {found!r}, the settings name {provider!r}",
            "Set `tee` to what this machine is",
        )
    before = _generation(entry)
    _write(entry / "inblob", report_data)
    outblob = _read(entry / "outblob", MAX_BLOB_BYTES)
    auxblob = _read(entry / "auxblob", MAX_BLOB_BYTES) if provider is Provider.SNP else b""
    if (after := _generation(entry)) != before + 1:  # one write, ours: else somebody else asked in between
        raise _Again(f"the generation went from {before} to {after} during one request")
    if not outblob:
        raise _Again("the evidence is empty")
    return TsmReport(outblob, auxblob)


def _generation(entry: Path) -> int:
    text = _read(entry / "generation", _MAX_TEXT).strip()
    if not text.isdigit():
        raise unavailable(f"generation is {text!r}, not a number")
    return int(text)


def _write(file: Path, content: bytes) -> None:
    """In one piece. The kernel takes it when the file is closed, and an error there only shows in the generation."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _read(file: Path, limit: int) -> bytes:
    """All of an attribute; what is longer than it can honestly be is refused before it fills the memory."""
    content = bytearray()
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := os.read(descriptor, _CHUNK):
            content += chunk
            if len(content) > limit:
                raise unavailable(f"{file.name} has more than {limit} bytes")
    finally:
        os.close(descriptor)
    return bytes(content)
