"""The files of GPUs' devices, as a driver's /proc asks for them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from image.guest.gpu import Node, device_nodes, make_node
from image.guest.linux import Refused

DEVICES = """Character devices:
  1 mem
195 nvidia
235 nvidia-caps
236 nvidia-uvm

Block devices:
  8 sd
195 nvidia-uvm
"""


def driver(proc: Path, *, devices: str = DEVICES, minors: tuple[str, ...] = ("1", "0")) -> Path:
    """What a loaded driver shows of two GPUs, and what may be given to a user in parts."""
    proc.mkdir(exist_ok=True)
    (proc / "devices").write_text(devices)
    for number, minor in enumerate(minors):
        folder = proc / "driver/nvidia/gpus" / f"0000:{number + 1:02x}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA H100\nDevice Minor: \t {minor}\nGPU Excluded:\t No\n"
        )
    for name, cap, mode in (("mig/config", 1, 256), ("gpu0/mig/gi1/access", 9, 292)):
        file = proc / "driver/nvidia/capabilities" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"DeviceFileMinor: {cap}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n")
    return proc


def test_every_file_that_cuda_opens(tmp_path: Path) -> None:
    """GPUs by the driver's own minors, the control file, unified memory by its own major, and capabilities for whom they are."""
    assert device_nodes(driver(tmp_path)) == [
        Node(name="nvidia0", major=195, minor=0),
        Node(name="nvidia1", major=195, minor=1),
        Node(name="nvidiactl", major=195, minor=255),
        Node(name="nvidia-uvm", major=236, minor=0),
        Node(name="nvidia-uvm-tools", major=236, minor=1),
        Node(name="nvidia-caps/nvidia-cap9", major=235, minor=9, mode=0o444),
        Node(name="nvidia-caps/nvidia-cap1", major=235, minor=1, mode=0o400),
    ]


def test_an_older_driver(tmp_path: Path) -> None:
    """It calls its major nvidia-frontend, and may have no capabilities."""
    proc = driver(
        tmp_path, devices="Character devices:\n195 nvidia-frontend\n511 nvidia-uvm\n", minors=("0",)
    )
    for file in sorted((proc / "driver/nvidia/capabilities").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert [node.name for node in device_nodes(proc)] == [
        "nvidia0",
        "nvidiactl",
        "nvidia-uvm",
        "nvidia-uvm-tools",
    ]


@pytest.mark.parametrize(
    ("devices", "minors", "named"),
    [
        ("195 nvidia\nBlock devices:\n236 nvidia-uvm\n", ("0",), "nvidia-uvm in /proc/devices"),
        ("236 nvidia-uvm\n", ("0",), "nvidia or nvidia-frontend"),
        ("195 nvidia\n236 nvidia-uvm\n", ("0",), "nvidia-caps in /proc/devices"),
        (DEVICES, (), "one or more"),
        (DEVICES, ("0", "0"), "a minor of its own"),
        (DEVICES, ("N/A",), "Device Minor"),
    ],
)
def test_what_the_driver_does_not_say_stops_the_start(
    tmp_path: Path, devices: str, minors: tuple[str, ...], named: str
) -> None:
    """No file is guessed."""
    with pytest.raises(Refused, match=named):
        device_nodes(driver(tmp_path, devices=devices, minors=minors))


def test_files_are_made_as_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As character devices with these numbers and rights, whatever the umask."""
    made: dict[str, tuple[int, int, int]] = {}

    def mknod(path: Path, mode: int, device: int) -> None:
        path.touch()
        made[str(path.relative_to(tmp_path))] = (mode, os.major(device), os.minor(device))

    monkeypatch.setattr(os, "mknod", mknod)
    before = os.umask(0o077)
    try:
        make_node(Node(name="nvidia-uvm", major=236, minor=0), tmp_path)
        make_node(Node(name="nvidia-caps/nvidia-cap1", major=235, minor=1, mode=0o400), tmp_path)
    finally:
        os.umask(before)
    assert made == {"nvidia-uvm": (stat.S_IFCHR, 236, 0), "nvidia-caps/nvidia-cap1": (stat.S_IFCHR, 235, 1)}
    rights = [
        (tmp_path / name).stat().st_mode & 0o777
        for name in ("nvidia-uvm", "nvidia-caps", "nvidia-caps/nvidia-cap1")
    ]
    assert rights == [0o666, 0o755, 0o400]
