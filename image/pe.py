"""Puts sections into an EFI program: kernel, initrd and command line behind systemd's stub make the image for clouds."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from image.errors import ImageError

_FILE = 0x200  # FileAlignment
_PAGE = 0x1000
_READ_DATA = 0x4000_0040  # readable, initialised data
_SECTION = struct.Struct("<8s6L2HL")  # IMAGE_SECTION_HEADER
_POINTER, _HEADER = 0x3C, 24  # where the PE header's place stands, and its length up to the optional header
# In the optional header of PE32+
_INITIALIZED, _SECTION_ALIGNMENT, _SIZE_OF_IMAGE, _SIZE_OF_HEADERS, _CHECKSUM = 8, 32, 56, 60, 64


def add_sections(program: bytes, sections: Mapping[str, bytes]) -> bytes:
    """The program with these sections behind its own, in this order. The checksum, which EFI does not read, becomes zero."""
    try:
        return _add(program, sections)
    except struct.error as exc:
        raise ImageError(f"the stub is cut off: {exc}") from exc


def _add(program: bytes, sections: Mapping[str, bytes]) -> bytes:
    (start,) = struct.unpack_from("<L", program, _POINTER)
    if (
        program[start : start + 4] != b"PE\0\0"
        or program[start + _HEADER : start + _HEADER + 2] != b"\x0b\x02"
    ):
        raise ImageError("the stub is no PE32+ program")
    count, optional = struct.unpack_from("<H", program, start + 6)[0], start + _HEADER
    table = optional + struct.unpack_from("<H", program, start + 20)[0]
    own = [_SECTION.unpack_from(program, table + number * _SECTION.size) for number in range(count)]
    headers = struct.unpack_from("<L", program, optional + _SIZE_OF_HEADERS)[0]
    if table + (count + len(sections)) * _SECTION.size > headers:
        raise ImageError("the stub's header has no room for more sections")
    address = max(entry[2] + entry[1] for entry in own)
    out = bytearray(program[: max(entry[4] + entry[3] for entry in own)])
    out += bytes(-len(out) % _FILE)
    for number, (name, content) in enumerate(sections.items(), start=count):
        address = -(-address // _PAGE) * _PAGE
        stored = len(content) + -len(content) % _FILE
        place = (len(content), address, stored, len(out), 0, 0, 0, 0, _READ_DATA)
        _SECTION.pack_into(out, table + number * _SECTION.size, name.encode(), *place)
        out += content.ljust(stored, b"\0")
        address += len(content)
    alignment = struct.unpack_from("<L", program, optional + _SECTION_ALIGNMENT)[0]
    struct.pack_into("<H", out, start + 6, count + len(sections))
    struct.pack_into("<2L", out, start + 12, 0, 0)  # no symbols: they would lie behind the old end
    data = struct.unpack_from("<L", program, optional + _INITIALIZED)[0]
    added = sum(len(content) + -len(content) % _FILE for content in sections.values())
    struct.pack_into("<L", out, optional + _INITIALIZED, data + added)
    struct.pack_into("<L", out, optional + _SIZE_OF_IMAGE, -(-address // alignment) * alignment)
    struct.pack_into("<L", out, optional + _CHECKSUM, 0)
    return bytes(out)


def read_sections(program: bytes) -> dict[str, bytes]:
    """Names and contents of a program's sections, in their order."""
    try:
        (start,) = struct.unpack_from("<L", program, _POINTER)
        if program[start : start + 4] != b"PE\0\0":
            raise ImageError("this is no EFI program")
        count, optional_size = (struct.unpack_from("<H", program, start + offset)[0] for offset in (6, 20))
        table = start + _HEADER + optional_size
        found = {}
        for number in range(count):
            name, size, _, stored, offset, *_ = _SECTION.unpack_from(program, table + number * _SECTION.size)
            found[name.rstrip(b"\0").decode("ascii", "replace")] = program[
                offset : offset + min(size, stored)
            ]
    except struct.error as exc:
        raise ImageError(f"the EFI program is cut off: {exc}") from exc
    return found
