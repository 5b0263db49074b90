"""One disk for clouds: a GPT, a FAT32 with the UKI where firmware looks for it, then the root and the configuration.

The partitions' names are those that the guest looks for. Every number and name is fixed: the same files make the same disk.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import UUID

SECTOR = 512
_MIB = 1 << 20
_ENTRIES, _ENTRY = 128, 128  # of a GPT: count, and bytes of each
_TABLE = _ENTRIES * _ENTRY // SECTOR
_ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
_LINUX = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

_RESERVED, _FATS = 32, 2  # sectors before the first of two tables
_FEWEST = 65_525  # clusters of a FAT32: with fewer it would be read as a FAT16
_FOLDER, _ARCHIVE = 0x10, 0x20
_END = 0x0FFF_FFFF  # the last cluster of a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition's name in the table, its type, and what it holds."""

    name: str
    kind: UUID
    content: Path | bytes

    @property
    def size(self) -> int:
        length = len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size
        return -(-length // _MIB) * _MIB


def write_disk(out: Path, *, uki: bytes, root: Path, config: Path) -> None:
    """Write the disk. What nobody writes is zero."""
    partitions = (
        Partition(name="enclave-esp", kind=_ESP, content=esp(uki)),
        Partition(name="enclave-root", kind=_LINUX, content=root),
        Partition(name="enclave-config", kind=_LINUX, content=config),
    )
    start, entries = _MIB, bytearray()
    with out.open("wb") as file:
        for partition in partitions:
            file.seek(start)
            if isinstance(partition.content, bytes):
                file.write(partition.content)
            else:
                with partition.content.open("rb") as content:
                    shutil.copyfileobj(content, file)
            entries += _partition_entry(partition, start)
            start += partition.size
        size = start + _MIB
        file.truncate(size)
        table = bytes(entries.ljust(_ENTRIES * _ENTRY, b"\0"))
        last = size // SECTOR - 1
        file.seek(0)
        file.write(_protective(last) + _gpt(table, here=1, other=last, table_at=2, last=last) + table)
        file.seek((last - _TABLE) * SECTOR)
        file.write(table + _gpt(table, here=last, other=1, table_at=last - _TABLE, last=last))


def esp(uki: bytes) -> bytes:
    """A FAT32 with one file, EFI/BOOT/BOOTX64.EFI."""
    first = 5  # clusters 2, 3 and 4 are the folders; one sector each
    used = -(-len(uki) // SECTOR)
    clusters = max(_FEWEST, used + 3) + 1024
    fat_sectors = -(-(clusters + 2) * 4 // SECTOR)
    total = _RESERVED + _FATS * fat_sectors + clusters
    chain = [0x0FFF_FFF8, _END, _END, _END, _END, *range(first + 1, first + used), _END]
    fat = struct.pack(f"<{len(chain)}L", *chain).ljust(fat_sectors * SECTOR, b"\0")
    boot = _boot_sector(total, fat_sectors)
    free = clusters - used - 3
    info = b"RRaA".ljust(484, b"\0") + struct.pack("<4sLL12xL", b"rrAa", free, first + used, 0xAA55_0000)
    reserved = (boot + info).ljust(6 * SECTOR, b"\0") + boot + info
    folders = (
        _fat_entry("EFI", _FOLDER, 3),
        _fat_entry(".", _FOLDER, 3) + _fat_entry("..", _FOLDER, 0) + _fat_entry("BOOT", _FOLDER, 4),
        _fat_entry(".", _FOLDER, 4)
        + _fat_entry("..", _FOLDER, 3)
        + _fat_entry("BOOTX64 EFI", _ARCHIVE, first, size=len(uki)),
    )
    data = b"".join(folder.ljust(SECTOR, b"\0") for folder in folders) + uki
    return (reserved.ljust(_RESERVED * SECTOR, b"\0") + fat * _FATS + data).ljust(total * SECTOR, b"\0")


def _boot_sector(total: int, fat_sectors: int) -> bytes:
    # bytes a sector, sectors a cluster, reserved, tables, 0, 0, medium, 0, sectors a track, heads, hidden, all
    old = struct.pack("<HBHBHHBHHHLL", SECTOR, 1, _RESERVED, _FATS, 0, 0, 0xF8, 0, 32, 64, 0, total)
    # sectors a table, flags, version, root's cluster, info's sector, copy's sector
    new = struct.pack("<LHHLHH12x", fat_sectors, 0, 0, 2, 1, 6)
    tail = struct.pack("<BBBL11s8s", 0x80, 0, 0x29, _number("volume"), b"NO NAME    ", b"FAT32   ")
    return (b"\xeb\x58\x90ENCLAVE " + old + new + tail).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"


def _fat_entry(name: str, attributes: int, cluster: int, *, size: int = 0) -> bytes:
    epoch = 0x21  # 1 January 1980, the first day that there is
    times = struct.pack("<BBHHHHHH", 0, 0, 0, epoch, epoch, cluster >> 16, 0, epoch)
    return name.encode().ljust(11) + bytes([attributes]) + times + struct.pack("<HL", cluster & 0xFFFF, size)


def _protective(last: int) -> bytes:
    """The MBR that says to old programs: all of this is taken."""
    entry = struct.pack("<B3sB3sLL", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFF_FFFF))
    return bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"


def _gpt(table: bytes, *, here: int, other: int, table_at: int, last: int) -> bytes:
    first_usable, last_usable = 2 + _TABLE, last - _TABLE - 1
    places = struct.pack("<4Q", here, other, first_usable, last_usable) + _guid("disk")
    rest = places + struct.pack("<QLLL", table_at, _ENTRIES, _ENTRY, zlib.crc32(table))
    head = b"EFI PART" + struct.pack("<LL", 0x1_0000, 92)
    crc = zlib.crc32(head + bytes(8) + rest)
    return (head + struct.pack("<LL", crc, 0) + rest).ljust(SECTOR, b"\0")


def _partition_entry(partition: Partition, start: int) -> bytes:
    last = start + partition.size - SECTOR
    places = struct.pack("<QQQ", start // SECTOR, last // SECTOR, 0)
    return (
        partition.kind.bytes_le
        + _guid(partition.name)
        + places
        + partition.name.encode("utf-16-le").ljust(72, b"\0")
    )


def _guid(name: str) -> bytes:
    digest = sha256(b"attested-inference/image/disk/v1\0" + name.encode()).digest()
    return UUID(bytes=digest[:16], version=4).bytes_le


def _number(name: str) -> int:
    return int.from_bytes(_guid(name)[:4], "little")
