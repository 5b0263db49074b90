#!/usr/bin/python3.11 -ISB
"""Process 1 in the initrd: opens the root that was measured, checks the configuration that was measured, and moves there.

Everything in the initrd was measured at launch, as was the command line; disks were not. So nothing on a disk is used before it was
held against the command line. Whatever goes wrong is one line on the console, `enclave-init: REFUSED …`, and the power goes off.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I looks nowhere of its own

from image.guest import modules
from image.guest.cmdline import parse_command_line
from image.guest.disks import find_disk
from image.guest.dm import open_verity
from image.guest.linux import (
    MOVE,
    NO_DEV,
    NO_EXEC,
    NO_SUID,
    READ_ONLY,
    REMOUNT,
    Refused,
    mount,
    power_off,
    say,
)

NEW = Path("/new")
CONFIG_FOLDER = Path("/etc/enclave")
CONFIG_BYTES = 1 << 20  # more is no configuration
PYTHON = "/opt/gateway/bin/python"
START = Path(__file__).resolve().parent / "start.py"


def main() -> None:
    """Never returns."""
    try:
        os.environ.clear()  # the kernel puts words of the command line there
        open_root()
        move_to_root()
    except Refused as exc:
        say(f"REFUSED {exc}")
    except BaseException as exc:  # noqa: BLE001 - process 1 must not end: the kernel's panic would hide why
        say(f"REFUSED start: expected no error, found {type(exc).__name__}: {exc}")
    power_off()


def open_root() -> None:
    """The root at /new, with the configuration in its place."""
    for source, target, kind in (("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs")):
        make_and_mount(source, Path(target), kind, NO_SUID | NO_DEV | NO_EXEC)
    make_and_mount("devtmpfs", Path("/dev"), "devtmpfs", NO_SUID | NO_EXEC)
    measured = parse_command_line(Path("/proc/cmdline").read_bytes())
    modules.load()
    root = open_verity("root", find_disk("enclave-root"), measured.root)
    make_and_mount(str(root), NEW, "erofs", READ_ONLY | NO_SUID | NO_DEV)
    say(f"root {measured.root.root_hash.hex()}")
    config = read_config(find_disk("enclave-config"), measured.config)
    folder = NEW / CONFIG_FOLDER.relative_to("/")
    flags = NO_SUID | NO_DEV | NO_EXEC
    mount("tmpfs", folder, "tmpfs", flags, "mode=0755,size=2m")
    (folder / "enclave.toml").write_bytes(config)
    mount("tmpfs", folder, "", REMOUNT | READ_ONLY | flags)
    say(f"configuration {measured.config.hex()}")


def read_config(disk: Path, expected: bytes) -> bytes:
    """The configuration on a disk, which fills its last block with zeros. Refused unless it has this SHA-256."""
    with disk.open("rb") as file:
        content = file.read(CONFIG_BYTES).rstrip(b"\0")
    if (found := sha256(content).digest()) != expected:
        raise Refused("configuration", expected=f"SHA-256 {expected.hex()}", found=found.hex())
    return content


def move_to_root() -> None:
    """The root becomes /, the initrd's files go, and the root's own Python goes on with `start.py`."""
    for name in ("dev", "proc", "sys"):
        mount(f"/{name}", NEW / name, "", MOVE)
    os.chdir(NEW)
    mount(".", Path("/"), "", MOVE)
    os.chroot(".")
    os.chdir("/")
    os.execve(PYTHON, [PYTHON, "-ISB", str(START)], {})  # noqa: S606 - no shell: there is none


def make_and_mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    target.mkdir(exist_ok=True)
    mount(source, target, kind, flags, options)


if __name__ == "__main__":
    main()
