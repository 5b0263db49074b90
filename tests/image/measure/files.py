"""Programs and firmware made for tests: small, and of the real forms."""

from __future__ import annotations

import struct
from pathlib import Path
from uuid import UUID

from image.measure.tdvf import Section, Tdvf
from image.pe import add_sections

PAGE = 4096
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")  # the same bytes in each release of Debian's ovmf so far
CODE = b"\xf4" * (2 * PAGE)


def program(*, signed: bytes = b"", checksum: int = 7, text: bytes = b"\x90" * 512) -> bytes:
    """A PE32+ program with one section, and signatures behind it."""
    head = b"MZ".ljust(0x3C, b"\0") + struct.pack("<L", 0x40)
    coff = b"PE\0\0" + struct.pack("<HHLLLHH", 0x8664, 1, 0, 0, 0, 240, 0x206)
    optional = struct.pack("<HBB5LQ", 0x20B, 0, 0, 512, 512, 0, 0x1000, 0x1000, 0).ljust(32, b"\0")
    optional += struct.pack("<LL", 0x1000, 0x200).ljust(24, b"\0") + struct.pack(
        "<LLL", 0x4000, 0x800, checksum
    )
    optional = optional.ljust(108, b"\0") + struct.pack("<L", 16)
    directories = bytearray(128)
    if signed:
        directories[32:40] = struct.pack("<LL", 0x800 + len(text), len(signed))
    section = struct.pack("<8s6L2HL", b".text", len(text), 0x1000, len(text), 0x800, 0, 0, 0, 0, 0x60000020)
    return (head + coff + optional + directories + section).ljust(0x800, b"\0") + text + signed


def kernel() -> bytes:
    """A bzImage of boot protocol 2.15 that is a PE program too."""
    found = bytearray(program(text=b"\x90" * 4096))
    found[0x202:0x208] = b"HdrS\x0f\x02"
    found[0x211], found[0x236] = 0x01, 0x02
    return bytes(found)


def unified(kernel: bytes, initrd: bytes, line: bytes, *, stub: int = 252) -> bytes:
    """A unified kernel image, as `image build` makes it."""
    magic = b"#### LoaderInfo: systemd-stub %d.39 ####" % stub
    sections = {
        ".sdmagic": magic,
        ".sbat": b"sbat,1",
        ".osrel": b"ID=debian\n",
        ".cmdline": line,
        ".initrd": initrd,
        ".linux": kernel,
    }
    return add_sections(program(), sections)


def guid_table(entries: dict[str, bytes]) -> bytes:
    """The end of an OVMF: values by GUID, and 32 bytes of reset vector."""
    table = b""
    for name, value in entries.items():
        table += value + struct.pack("<H", len(value) + 18) + UUID(name).bytes_le
    footer = UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    return table + struct.pack("<H", len(table) + 18) + footer + bytes(32)


def firmware(variables: bytes = bytes(PAGE), code: bytes = CODE, **descriptor: int) -> bytes:
    """A firmware for TDX: variables, code, and the places in memory that live logs show."""
    sections = (
        (len(variables), len(code), 0xFFC84000, len(code), 0, 1),
        (0, len(variables), 0xFFC00000, len(variables), 1, 0),
        (0, 0, 0x811000, 0xF000, 3, 0),
        (0, 0, 0x80B000, 0x2000, 3, 0),
        (0, 0, 0x809000, 0x2000, 2, 0),
        (0, 0, 0x800000, 0x6000, 3, 0),
    )
    entries = b"".join(struct.pack("<IIQQII", *section) for section in sections)
    count, version = descriptor.get("count", len(sections)), descriptor.get("version", 1)
    head = struct.pack("<4sIII", b"TDVF", 16 + len(entries), version, count)
    table = guid_table({"e47a6535-984a-4798-865e-4685a7bf8ec2": bytes(4)})
    offset = len(head + entries + table)
    table = guid_table({"e47a6535-984a-4798-865e-4685a7bf8ec2": offset.to_bytes(4, "little")})
    return variables + code + head + entries + table


def layout(temporary: tuple[int, int], variables: bytes = b"") -> Tdvf:
    """Only what decides the TD HOB and the variables' event."""
    places = (temporary, (0x80B000, 0x2000), (0x800000, 0x6000))
    return Tdvf(
        sections=(
            Section(data=variables, address=0xFFC00000, size=len(variables), type=1, attributes=0),
            Section(data=b"", address=0x809000, size=0x2000, type=2, attributes=0),
            *(Section(data=b"", address=a, size=size, type=3, attributes=0) for a, size in places),
        ),
        secure_boot=False,
    )


def snp_firmware(*, hashes: bool = True) -> bytes:
    """A firmware for SEV-SNP with the layout of the one that sev-snp-measure's own values are for."""
    sections = [
        *((0x800000, 0x9000, 1), (0x80A000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3)),
        *((0x80F000, 0x1000, 1), (0x811000, 0xF000, 1)),
    ]
    if hashes:
        sections.insert(5, (0x810000, 0x1000, 0x10))
    items = b"".join(struct.pack("<III", *section) for section in sections)
    head = b"ASEV" + struct.pack("<III", 16 + len(items), 1, len(sections))
    entries = {
        "dc886566-984a-4798-a75e-5585a7bf67cc": bytes(4),
        "7255371f-3a3b-4b04-927b-1da6efa8d454": struct.pack("<II", 0x810C00, 0x400),
        "00f771de-1a7e-4fcb-890e-68c77e2fb44e": struct.pack("<I", 0x80B004),
    }
    offset = len(head + items + guid_table(entries))
    entries["dc886566-984a-4798-a75e-5585a7bf67cc"] = offset.to_bytes(4, "little")
    return (head + items + guid_table(entries)).rjust(PAGE, b"\0")
