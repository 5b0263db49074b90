"""NVIDIA GPUs in confidential mode: the driver takes no work until a gate in the measured root has judged them.

Never run: no machine with such a GPU was at hand. An image for GPUs has to bring the driver's modules and their list, its firmware,
libnvidia-ml and the gate, a program that ends with 0 when the GPUs' evidence was verified. Without them `gpus = true` stops the start.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from image.guest import modules
from image.guest.linux import Refused

LIST = Path("/usr/lib/enclave/gpu-modules.list")
GATE = "/usr/lib/enclave/gpu-gate"
_CONTROL, _FOR_ALL = 255, 0o666  # for the engine's user too
_UVM = {
    "nvidia-uvm": 0,
    "nvidia-uvm-tools": 1,
}  # minors; the memory of host and GPU as one, which CUDA does not start without
_DRIVER, _UVM_DRIVER, _CAPABILITIES = ("nvidia", "nvidia-frontend"), ("nvidia-uvm",), ("nvidia-caps",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A device's file."""

    name: str  # below /dev
    major: int
    minor: int
    mode: int = _FOR_ALL


def open_gpus() -> None:
    """Load the driver, and let it take work once the gate has passed. Refused otherwise."""
    modules.load(LIST)
    for node in device_nodes():
        make_node(node)
    set_ready(False)
    done = subprocess.run([GATE], env={}, check=False)  # noqa: S603 - from the measured root
    if done.returncode != 0:
        raise Refused("GPU gate", expected="status 0", found=done.returncode)
    set_ready(True)


def device_nodes(proc: Path = Path("/proc")) -> list[Node]:
    """The files that a driver in this /proc wants: of each GPU, of CUDA's memory, and of what a user may be given a part of."""
    majors = _majors(proc / "devices")
    driver, uvm = _major(majors, _DRIVER), _major(majors, _UVM_DRIVER)
    gpus = sorted(
        _number(file, "Device Minor") for file in (proc / "driver/nvidia/gpus").glob("*/information")
    )
    if not gpus or len(set(gpus)) != len(gpus):
        raise Refused("GPUs", expected="one or more, each with a minor of its own", found=gpus)
    nodes = [Node(name=f"nvidia{minor}", major=driver, minor=minor) for minor in gpus]
    nodes.append(Node(name="nvidiactl", major=driver, minor=_CONTROL))
    nodes += [Node(name=name, major=uvm, minor=minor) for name, minor in _UVM.items()]
    for file in sorted(path for path in (proc / "driver/nvidia/capabilities").rglob("*") if path.is_file()):
        minor, mode = (
            _number(file, "DeviceFileMinor"),
            _number(file, "DeviceFileMode"),
        )  # the driver says who may
        major = _major(majors, _CAPABILITIES)
        nodes.append(
            Node(name=f"nvidia-caps/nvidia-cap{minor}", major=major, minor=minor, mode=mode & _FOR_ALL)
        )
    return nodes


def make_node(node: Node, dev: Path = Path("/dev")) -> None:
    path = dev / node.name
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.parent.chmod(0o755)  # whatever the umask
    os.mknod(path, stat.S_IFCHR, os.makedev(node.major, node.minor))
    path.chmod(node.mode)


def _majors(file: Path) -> dict[str, int]:
    """Of the character devices in /proc/devices, which are above the block devices."""
    characters = file.read_text().partition("Block devices:")[0]
    words = (line.split() for line in characters.splitlines())
    return {found[1]: int(found[0]) for found in words if len(found) == 2 and found[0].isdecimal()}


def _major(majors: dict[str, int], names: tuple[str, ...]) -> int:
    """Under the first of these names that is there: drivers have changed theirs."""
    for name in names:
        if name in majors:
            return majors[name]
    raise Refused("GPU driver", expected=f"{' or '.join(names)} in /proc/devices", found="none")


def _number(file: Path, key: str) -> int:
    """The value on the line `key: value`."""
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key and value.strip().isdecimal():
            return int(value)
    raise Refused("GPU driver", expected=f"{key} in {file}", found="none")


def set_ready(ready: bool) -> None:
    """Whether the driver takes work."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    for status in (nvml.nvmlInit_v2(), nvml.nvmlSystemSetConfComputeGpusReadyState(int(ready))):
        if status != 0:
            raise Refused("GPU ready state", expected="NVML status 0", found=status)
