"""Opens a disk by dm-verity: the kernel hashes each block that is read, and stops the machine at a wrong one.

The kernel's device-mapper interface (include/uapi/linux/dm-ioctl.h) by ioctl, since nothing else in the initrd speaks it.
The tree lies directly behind the data, as `enclave-server model pack` and the image's build write it. There is no superblock.
"""

from __future__ import annotations

import fcntl
import struct
from hashlib import sha256
from pathlib import Path

from image.guest.cmdline import Verity
from image.guest.linux import Refused

BLOCK, SECTOR = 4096, 512
CONTROL = Path("/dev/mapper/control")
CREATE, LOAD, RESUME = 3, 9, 6
READ_ONLY = 1
_HEADER = "=3I I I I i I I I Q 128s 136x"  # struct dm_ioctl
_TARGET = "=Q Q i I 16s"  # struct dm_target_spec
HEADER, TARGET = struct.calcsize(_HEADER), struct.calcsize(_TARGET)
_IOWR = 3 << 30 | HEADER << 16 | 0xFD << 8


def open_verity(name: str, disk: Path, verity: Verity) -> Path:
    """The device through which every block is checked. Refused when the disk's tree has another root."""
    _check_root(name, disk, verity)
    table = target(verity.data_blocks * BLOCK // SECTOR, "verity", parameters(disk, verity))
    with CONTROL.open("r+b", buffering=0) as control:
        try:
            _ioctl(control.fileno(), CREATE, request(name))
            _ioctl(control.fileno(), LOAD, request(name, table, targets=1))
            answer = _ioctl(control.fileno(), RESUME, request(name))
        except OSError as exc:
            raise Refused(f"{name} disk", expected="one that dm-verity opens", found=exc.strerror) from exc
    return Path(f"/dev/dm-{minor(struct.unpack_from('=Q', answer, 40)[0])}")


def minor(device: int) -> int:
    """Of a device number as the kernel writes it in 64 bits."""
    return (device & 0xFF) | (device >> 12 & 0xFFFFF00)


def parameters(disk: Path, verity: Verity) -> str:
    """The table's line (Documentation/admin-guide/device-mapper/verity.rst)."""
    geometry = f"1 {disk} {disk} {BLOCK} {BLOCK} {verity.data_blocks} {verity.data_blocks}"
    options = "2 panic_on_corruption panic_on_error"  # going on with an error would let the host choose what is missing
    return f"{geometry} sha256 {verity.root_hash.hex()} {verity.salt.hex()} {options}"


def request(name: str, payload: bytes = b"", *, targets: int = 0) -> bytes:
    """A struct dm_ioctl and what follows it."""
    size = HEADER + len(payload)
    header = struct.pack(_HEADER, 4, 0, 0, size, HEADER, targets, 0, READ_ONLY, 0, 0, 0, name.encode())
    return header + payload


def target(sectors: int, kind: str, line: str) -> bytes:
    """A struct dm_target_spec and its parameters, filled up to eight bytes."""
    text = line.encode() + b"\0"
    text += bytes(-len(text) % 8)
    return struct.pack(_TARGET, 0, sectors, 0, TARGET + len(text), kind.encode()) + text


def _check_root(name: str, disk: Path, verity: Verity) -> None:
    """The kernel checks this too, and more, but it names neither hash."""
    with disk.open("rb") as file:
        file.seek(verity.data_blocks * BLOCK if verity.data_blocks > 1 else 0)
        found = sha256(verity.salt + file.read(BLOCK)).hexdigest()
    if found != verity.root_hash.hex():
        raise Refused(f"{name} disk", expected=f"root hash {verity.root_hash.hex()}", found=found)


def _ioctl(control: int, command: int, data: bytes) -> bytearray:
    buffer = bytearray(data)
    fcntl.ioctl(control, _IOWR | command, buffer)
    return buffer
