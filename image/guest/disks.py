"""Finds a disk by its name: the serial of a virtio disk, else the name of a GPT partition. Nothing here is trusted."""

from __future__ import annotations

import time
from pathlib import Path

from image.guest.linux import Refused

SYS, DEV = Path("/sys/class/block"), Path("/dev")
SECONDS = 20.0  # a host may attach its disks late


def find_disk(name: str, *, seconds: float = SECONDS, sys: Path = SYS) -> Path:
    """The device of this name. Refused when there is none, or more than one."""
    end = time.monotonic() + seconds
    while not (found := named(name, sys)) and time.monotonic() < end:
        time.sleep(0.05)
    if len(found) != 1:
        raise Refused("disk", expected=f"one named {name}", found=" and ".join(found) or "none")
    return DEV / found[0]


def named(name: str, sys: Path = SYS) -> list[str]:
    """Devices with this serial; where no device has it, partitions with this name."""
    devices = sorted(path for path in sys.iterdir())
    by_serial = [path.name for path in devices if _text(path / "serial") == name]
    return by_serial or [
        path.name for path in devices if f"PARTNAME={name}" in _text(path / "uevent").splitlines()
    ]


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:4096].decode("ascii", "replace").strip()
    except OSError:
        return ""
