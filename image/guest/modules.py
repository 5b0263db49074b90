"""Kernel modules: a list that the build wrote, in its order, and then none any more."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from image.guest.linux import Refused, finit_module, say

LIST = Path("/usr/lib/enclave/modules.list")  # one absolute path a line, each after those that it needs
DISABLED = Path("/proc/sys/kernel/modules_disabled")
# What the list has to lead to; the build adds what these depend on, and leaves out what the kernel has built in.
# No vsock: the firewall does not see it, and a TD asks for its quotes through configfs-tsm.
NEEDED = (
    "configfs",
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "sd_mod",
    "hv_vmbus",
    "hv_storvsc",
    "dm_verity",
    "erofs",
    "sha256_ssse3",
    "tsm",
    "tdx_guest",
    "sev_guest",
    "virtio_net",
    "hv_netvsc",
    "gve",
    "nf_tables",
    "nft_ct",
)
_DEPENDS = re.compile(rb"\0depends=([a-zA-Z0-9_,-]*)\0")
_NOT_HERE = {
    errno.ENODEV,
    errno.ENOENT,
    errno.EOPNOTSUPP,
}  # a driver of hardware that this machine does not have


def parse_list(text: str) -> list[Path]:
    """The paths of a list. Refused: anything but absolute paths of modules, each once."""
    paths = [Path(line) for line in text.splitlines()]
    for path in paths:
        if not path.is_absolute() or ".." in path.parts or not path.name.endswith((".ko", ".ko.xz")):
            raise Refused("module", expected="an absolute path of a module", found=path)
    if len(set(paths)) != len(paths):
        raise Refused("module", expected="each once", found=len(paths))
    return paths


def load(file: Path = LIST) -> None:
    """Load what the list names. A driver without its hardware is passed over, and so is what needs it; anything else stops the start."""
    absent: set[str] = set()
    for path in parse_list(file.read_text()):
        if absent & set(_needs(path)):
            absent.add(name_of(path))  # the kernel would complain of each symbol that it lacks
            continue
        try:
            finit_module(path)
        except OSError as exc:
            if exc.errno in _NOT_HERE:
                absent.add(name_of(path))
                say(f"no hardware for {path.name}")
            elif exc.errno != errno.EEXIST:
                raise Refused("module", expected=f"{path} to load", found=exc.strerror) from exc


def dependencies(module: bytes) -> list[str] | None:
    """What a module says it needs. Its section `.modinfo` is NUL-separated words, and no other section has this one."""
    match = _DEPENDS.search(module)
    return (
        None if match is None else [name.replace("-", "_") for name in match[1].decode().split(",") if name]
    )


def name_of(path: Path) -> str:
    """As others name it that need it."""
    return path.name.split(".ko")[0].replace("-", "_")


def _needs(path: Path) -> list[str]:
    """Nothing is known of a module that only the kernel can unpack; then it is tried."""
    return (dependencies(path.read_bytes()) or []) if path.suffix == ".ko" else []


def close() -> None:
    """No module is loaded after this, until the machine is started again."""
    DISABLED.write_text("1")
