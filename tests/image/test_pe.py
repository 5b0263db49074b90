"""Sections in an EFI program: found again where a loader looks for them, and nothing else changed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.errors import ImageError
from image.pe import add_sections, read_sections

SECTIONS = {".cmdline": b"ro", ".initrd": b"\1" * 5000, ".linux": b"MZ" + b"\2" * 600}


def program(*, headers: int = 0x400) -> bytes:
    """A PE32+ with one section of 512 bytes, and symbols behind it."""
    optional = struct.pack("<HBB6LQ", 0x20B, 0, 0, 512, 512, 0, 0x1000, 0x1000, 0, 0)[:24].ljust(32, b"\0")
    optional += struct.pack("<LL", 0x200, 0x200).ljust(24, b"\0") + struct.pack("<LLL", 0x1200, headers, 7)
    optional = optional.ljust(240, b"\0")
    coff = b"PE\0\0" + struct.pack("<HHLLLHH", 0x8664, 1, 0, 0x600, 3, len(optional), 0x206)
    section = struct.pack("<8s6L2HL", b".text", 500, 0x1000, 512, headers, 0, 0, 0, 0, 0x60000020)
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<L", 0x40)
    return (head + coff + optional + section).ljust(headers, b"\0") + b"\x90" * 512 + b"symbols"


def test_read_back() -> None:
    """New sections are behind the program's own, each at a page of its own; the symbols are gone."""
    out = add_sections(program(), SECTIONS)
    assert list(read_sections(out).items()) == [(".text", b"\x90" * 500), *SECTIONS.items()]
    assert b"symbols" not in out
    (start,) = struct.unpack_from("<L", out, 0x3C)
    addresses = [struct.unpack_from("<L", out, start + 264 + 40 * number + 12)[0] for number in range(4)]
    assert addresses == [0x1000, 0x2000, 0x3000, 0x5000]
    assert (
        struct.unpack_from("<L", out, start + 24 + 56)[0] == 0x5000 + 0x400
    )  # SizeOfImage, a multiple of 0x200
    assert struct.unpack_from("<LL", out, start + 12) == (0, 0)
    assert add_sections(program(), SECTIONS) == out


@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_objdump_agrees(tmp_path: Path) -> None:
    """binutils sees the same sections and sizes."""
    path = tmp_path / "x.efi"
    path.write_bytes(add_sections(program(), SECTIONS))
    listed = subprocess.run(["objdump", "-h", path], capture_output=True, text=True, check=True).stdout
    found = {line.split()[1]: int(line.split()[2], 16) for line in listed.splitlines() if " ." in line}
    assert {name: found[name] for name in SECTIONS} == {
        name: len(content) for name, content in SECTIONS.items()
    }


def test_no_room() -> None:
    """A header without room for more sections is refused."""
    with pytest.raises(ImageError, match="no room"):
        add_sections(program(), {f".s{number}": b"" for number in range(17)})


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a program or are refused in words."""
    for reader in (read_sections, lambda data: add_sections(data, SECTIONS)):
        with suppress(ImageError):
            reader(data)
