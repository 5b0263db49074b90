"""What UEFI firmware, Linux' EFI stub and systemd-stub measure, as the bytes that their digests are over.

Where nothing else is said the clauses are of the TCG PC Client Platform Firmware Profile (PFP) 1.06.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256, sha384
from uuid import UUID

from attestation.release import ExpectedEvent
from image.errors import ImageError

SEPARATOR = bytes(4)  # §3.3.4.7
CALLING = b"Calling EFI Application from Boot Option"  # §10.4.4
EXIT_INVOKED = b"Exit Boot Services Invocation"
EXIT_FAILED = b"Exit Boot Services Returned with Failure"
EXIT_SUCCEEDED = b"Exit Boot Services Returned with Success"

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
IMAGE_SECURITY = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_FIRMWARE_UI = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")  # the volume that OVMF's own applications lie in

_GPT_BLOCK, _GPT_HEADER_BYTES, _GPT_ENTRY_BYTES, _GPT_MAX_ENTRIES = 512, 92, 128, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One event before it has a register: what it is, which file or setting makes it, and its two digests."""

    what: str
    source: str
    sha256: bytes
    sha384: bytes

    def into(self, register: str) -> ExpectedEvent:
        return ExpectedEvent(
            register=register, what=self.what, source=self.source, sha256=self.sha256, sha384=self.sha384
        )


def measured(what: str, source: str, data: bytes) -> Measured:
    """An event whose digest is over `data`."""
    return Measured(what=what, source=source, sha256=sha256(data).digest(), sha384=sha384(data).digest())


def action(text: bytes) -> Measured:
    return measured(text.decode(), "firmware", text)


def separator() -> Measured:
    return measured("separator", "firmware", SEPARATOR)


def exits(retries: int) -> tuple[Measured, ...]:
    """A kernel that ends boot services. Firmware may refuse when the memory map has just changed; then it asks again."""
    again = (action(EXIT_INVOKED), action(EXIT_FAILED)) * retries
    return (*again, action(EXIT_INVOKED), action(EXIT_SUCCEEDED))


def load_options(line: str, source: str) -> Measured:
    """The command line as Linux' EFI stub got it: UTF-16 with its NUL (drivers/firmware/efi/libstub, `efi_measure_tagged_event`)."""
    return measured("command line", source, line.encode("utf-16-le") + b"\0\0")


def variable(name: str, data: bytes, vendor: UUID = GLOBAL) -> Measured:
    """UEFI_VARIABLE_DATA (§10.2.6), as Secure Boot's variables are measured."""
    text = name.encode("utf-16-le")
    head = vendor.bytes_le + (len(text) // 2).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return measured(f"variable {name}", "firmware's variables", head + text + data)


def boot_variable(name: str, data: bytes) -> Measured:
    """Boot#### and BootOrder: edk2 measures the content alone."""
    return measured(f"variable {name}", "profile", data)


def firmware_option(description: str, attributes: int, file: UUID) -> bytes:
    """EFI_LOAD_OPTION of an application in the firmware's own volume (UEFI §3.1.3)."""
    path = (
        b"\x04\x07\x14\x00"
        + _FIRMWARE_UI.bytes_le
        + b"\x04\x06\x14\x00"
        + file.bytes_le
        + b"\x7f\xff\x04\x00"
    )
    head = attributes.to_bytes(4, "little") + len(path).to_bytes(2, "little")
    return head + description.encode("utf-16-le") + b"\0\0" + path


def partition_table(disk: bytes) -> Measured:
    """UEFI_GPT_DATA (§10.2.4): the header, how many partitions are used, and their entries. `disk` is at least its beginning."""
    header = disk[_GPT_BLOCK : _GPT_BLOCK + _GPT_HEADER_BYTES]
    if header[:8] != b"EFI PART" or len(header) != _GPT_HEADER_BYTES:
        raise ImageError("the disk has no GUID partition table in blocks of 512 bytes")
    start, count, size = (int.from_bytes(header[a:b], "little") for a, b in ((72, 80), (80, 84), (84, 88)))
    entries = disk[start * _GPT_BLOCK :][: count * size]
    if size != _GPT_ENTRY_BYTES or count > _GPT_MAX_ENTRIES or len(entries) != count * size:
        raise ImageError(f"the disk's partition table has {count} entries of {size} bytes, or is cut off")
    used = [e for e in (entries[i : i + size] for i in range(0, len(entries), size)) if any(e[:16])]
    return measured("partition table", "disk.raw", header + len(used).to_bytes(8, "little") + b"".join(used))
