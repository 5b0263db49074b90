"""The disk for clouds: what a GPT's and a FAT's own checkers say of it, and what is read back from it."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path

import pytest

from image.disk import esp, write_disk

UKI = bytes(range(256)) * 5000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    (tmp_path / "root.img").write_bytes(b"root" * 300_000)
    (tmp_path / "config.img").write_bytes(b"config".ljust(4096, b"\0"))
    out = tmp_path / "disk.raw"
    write_disk(out, uki=UKI, root=tmp_path / "root.img", config=tmp_path / "config.img")
    return out


def test_partitions(disk: Path) -> None:
    """The names that the guest looks for, whole MiB each, and the contents at their places; both headers are whole."""
    data = disk.read_bytes()
    found = {}
    for number in range(3):
        entry = data[1024 + 128 * number :][:128]
        first, last = (int.from_bytes(entry[place : place + 8], "little") for place in (32, 40))
        found[entry[56:].decode("utf-16-le").rstrip("\0")] = data[first * 512 : (last + 1) * 512]
        assert first % 2048 == (last + 1) % 2048 == 0
    assert list(found) == ["enclave-esp", "enclave-root", "enclave-config"]
    assert found["enclave-root"].startswith(b"root" * 300_000)
    assert found["enclave-config"].rstrip(b"\0") == b"config"
    for header in (data[512:604], data[-512:-420]):
        assert header.startswith(b"EFI PART")
        assert zlib.crc32(header[:16] + bytes(4) + header[20:]) == int.from_bytes(header[16:20], "little")
    assert len(data) % (1 << 20) == 0


def test_twice_the_same(disk: Path, tmp_path: Path) -> None:
    """Nothing in it comes from a clock or from chance."""
    again = tmp_path / "again.raw"
    write_disk(again, uki=UKI, root=tmp_path / "root.img", config=tmp_path / "config.img")
    assert again.read_bytes() == disk.read_bytes()


@pytest.mark.skipif(shutil.which("sgdisk") is None, reason="sgdisk (gdisk) is not installed")
def test_sgdisk_has_no_complaint(disk: Path) -> None:
    """gdisk verifies both tables."""
    done = subprocess.run(["sgdisk", "-v", disk], capture_output=True, text=True, check=True)
    assert "No problems found" in done.stdout


@pytest.mark.skipif(
    shutil.which("fsck.vfat", path="/usr/sbin:/sbin") is None,
    reason="fsck.vfat (dosfstools) is not installed",
)
@pytest.mark.parametrize("size", [1, 512, 513, 1_280_000, 40 << 20])
def test_fsck_has_no_complaint(tmp_path: Path, size: int) -> None:
    """dosfstools finds nothing to mend, whatever the size of the file; and it is a FAT32."""
    path = tmp_path / "esp"
    path.write_bytes(esp(b"x" * size))
    done = subprocess.run(["/usr/sbin/fsck.vfat", "-vn", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "32 bit entries" in done.stdout


@pytest.mark.skipif(shutil.which("mcopy") is None, reason="mcopy (mtools) is not installed")
def test_read_back(tmp_path: Path) -> None:
    """mtools reads the file that was put in."""
    path, back = tmp_path / "esp", tmp_path / "back"
    path.write_bytes(esp(UKI))
    subprocess.run(["mcopy", "-i", path, "::EFI/BOOT/BOOTX64.EFI", back], check=True)
    assert back.read_bytes() == UKI
