"""NVIDIA GPUs in confidential mode: the driver takes no work until a gate in the measured root has judged them.

Never run: no machine with such a GPU was at hand. An image for GPUs has to bring the driver's modules and their list, its firmware,
libnvidia-ml and the gate, a program that ends with 0 when the GPUs' evidence was verified. Without them `gpus = true` stops the start.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from pathlib import Path

from image.guest import modules
from image.guest.linux import Refused

LIST = Path("/usr/lib/enclave/gpu-modules.list")
GATE = "/usr/lib/enclave/gpu-gate"
GPUS = Path("/proc/driver/nvidia/gpus")
_MAJOR, _CONTROL = 195, 255  # of /dev/nvidia…


def open_gpus() -> None:
    """Load the driver, and let it take work once the gate has passed. Refused otherwise."""
    modules.load(LIST)
    for number in (*range(len(list(GPUS.iterdir()))), _CONTROL):
        name = "nvidiactl" if number == _CONTROL else f"nvidia{number}"
        node = Path("/dev", name)
        os.mknod(node, stat.S_IFCHR, os.makedev(_MAJOR, number))
        node.chmod(0o666)  # for the engine's user, whatever the umask
    set_ready(False)
    done = subprocess.run([GATE], env={}, check=False)  # noqa: S603 - from the measured root
    if done.returncode != 0:
        raise Refused("GPU gate", expected="status 0", found=done.returncode)
    set_ready(True)


def set_ready(ready: bool) -> None:
    """Whether the driver takes work."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    for status in (nvml.nvmlInit_v2(), nvml.nvmlSystemSetConfComputeGpusReadyState(int(ready))):
        if status != 0:
            raise Refused("GPU ready state", expected="NVML status 0", found=status)
