"""The calculators by themselves: what each number covers, what it does not, and what is refused."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from hashlib import sha384

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.errors import ImageError
from image.measure import efi, pcr
from image.measure.authenticode import parse_pe
from image.measure.boot_header import filled_in, low_memory
from image.measure.profiles import PROFILES, profile_named
from image.measure.registers import replay
from image.measure.rtmr import HostEvents, rtmr0, rtmr1
from image.measure.shapes import GIB, shape_named
from image.measure.tdvf import parse_tdvf
from tests.image.measure.files import CODE, PAGE, firmware, kernel, layout, program, unified

PROFILE = PROFILES["qemu10-edk2-2025.02"]


def test_a_signature_changes_no_digest() -> None:
    """Neither checksum nor signatures are measured; every other byte is."""
    plain, signed = program(), program(signed=b"\x30" * 64, checksum=9)
    assert parse_pe(plain, "a").authenticode("sha384") == parse_pe(signed, "b").authenticode("sha384")
    assert parse_pe(plain, "a").authenticode("sha256") != parse_pe(plain + b"x", "b").authenticode("sha256")
    for position in (0x100, 0x7FF, 0x800, 0x9FF):
        altered = bytearray(plain)
        altered[position] ^= 1
        assert parse_pe(bytes(altered), "c").authenticode("sha384") != parse_pe(plain, "a").authenticode(
            "sha384"
        )


@given(
    st.binary(max_size=600)
    | st.builds(lambda n, b: program()[:n] + b, st.integers(0, 2600), st.binary(max_size=64))
)
def test_any_bytes_are_a_program_or_refused(data: bytes) -> None:
    """Whatever is in a file, only ImageError comes of it."""
    with suppress(ImageError):
        parse_pe(data, "x").authenticode("sha256")


def test_each_truncation_of_a_program_is_refused_or_another() -> None:
    """Nothing beyond the end is read as if it were there."""
    whole = program(signed=b"\x30" * 64)
    for size in range(len(whole)):
        with pytest.raises(ImageError):
            parse_pe(whole[:size], "x")


def test_what_qemu_writes_into_a_kernel() -> None:
    """Loader, heap, command line and initrd; the address depends on memory up to 2.75 GiB and then no more."""
    plain = kernel()
    filled = filled_in(plain, initrd_size=1000, memory=2 * GIB)
    assert filled[0x210] == 0xB0
    assert filled[0x211] == 0x81
    assert filled[0x228:0x22C] == (0x20000).to_bytes(4, "little")
    assert int.from_bytes(filled[0x21C:0x220], "little") == 1000
    assert int.from_bytes(filled[0x218:0x21C], "little") == (2 * GIB - 0x28000 - 1 - 1000) & ~0xFFF
    changed = {i for i, (a, b) in enumerate(zip(plain, filled, strict=True)) if a != b}
    assert changed <= {0x210, 0x211, *range(0x218, 0x22C)}
    assert filled_in(plain, initrd_size=9, memory=4 * GIB) == filled_in(plain, initrd_size=9, memory=64 * GIB)
    assert filled_in(plain, initrd_size=9, memory=GIB) != filled_in(plain, initrd_size=9, memory=2 * GIB)
    assert (low_memory(GIB), low_memory(3 * GIB)) == (GIB, 2 * GIB)


@pytest.mark.parametrize("damage", [(0x202, b"HdrX"), (0x206, b"\x00\x02"), (0x211, b"\x00")])
def test_no_kernel(damage: tuple[int, bytes]) -> None:
    """Old protocols and other files are refused, not patched."""
    found = bytearray(kernel())
    found[damage[0] : damage[0] + len(damage[1])] = damage[1]
    with pytest.raises(ImageError, match=r"bzImage|protocol"):
        filled_in(bytes(found), initrd_size=1, memory=GIB)


def test_mrtd_covers_the_code_alone() -> None:
    """Every byte of the code, its place, and in which order the VMM works; the variables are RTMR0's."""
    base = parse_tdvf(firmware())
    code = bytearray(CODE)
    code[100] ^= 1
    other = parse_tdvf(firmware(code=bytes(code)))
    variables = parse_tdvf(firmware(variables=b"\1" * PAGE))
    assert len({base.mrtd(1), base.mrtd(2), other.mrtd(1), other.mrtd(2)}) == 4
    assert variables.mrtd(1) == base.mrtd(1)
    assert variables.variables() != base.variables()


def test_mrtd_by_hand() -> None:
    """A page added and measured: 128 bytes for the page, and for each 256 bytes of it 128 more and the bytes."""
    found = sha384()
    tdvf = parse_tdvf(firmware())
    for section in tdvf.sections:
        for page in range(section.address, section.address + section.size, PAGE):
            found.update(b"MEM.PAGE.ADD".ljust(16, b"\0") + page.to_bytes(8, "little") + bytes(104))
            if section.type == 0:
                for at in range(page, page + PAGE, 256):
                    found.update(b"MR.EXTEND".ljust(16, b"\0") + at.to_bytes(8, "little") + bytes(104))
                    found.update(b"\xf4" * 256)
    assert tdvf.mrtd(1) == found.digest()


def test_firmware_with_a_platform_key() -> None:
    """It would start nothing of ours, and is told from others; a name alone is no key."""
    header = b"\xaa\x55\x3f\x00".ljust(60, b"\0")
    keyed = parse_tdvf(firmware(variables=(header + "PK\0".encode("utf-16-le")).ljust(PAGE, b"\0")))
    deleted = b"\xaa\x55\x3c\x00".ljust(60, b"\0")
    empty = parse_tdvf(firmware(variables=(deleted + "PK\0".encode("utf-16-le")).ljust(PAGE, b"\0")))
    assert (keyed.secure_boot, empty.secure_boot) == (True, False)


@pytest.mark.parametrize(
    "data", [b"", bytes(100), firmware(version=2), firmware(count=65), firmware()[PAGE:], firmware(count=7)]
)
def test_no_firmware(data: bytes) -> None:
    """What has no descriptor, or a broken one, is refused."""
    with pytest.raises(ImageError):
        parse_tdvf(data)


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_any_bytes_are_firmware_or_refused(back: int, change: bytes) -> None:
    """However its tables are altered, only ImageError comes of it."""
    data = bytearray(firmware())
    at = max(len(data) - back, 0)
    data[at : at + len(change)] = change
    with suppress(ImageError):
        found = parse_tdvf(bytes(data))
        found.variables()
        found.hand_off(2 * GIB)


def test_memory_is_handed_over_whole() -> None:
    """What is added and what is to be accepted is all of the memory, in order, also beyond 4 GiB."""
    found = layout((0x811000, 0xF000))
    digests = {found.hand_off(size * GIB).sha384 for size in (1, 2, 3, 4, 8, 192)}
    assert len(digests) == 6
    with pytest.raises(ImageError, match="more memory"):
        found.hand_off(1 << 20)


def test_a_retry_is_another_form_of_one_register() -> None:
    """RTMR1 has three, and nothing else differs."""
    found = {
        replay((e.into("RTMR1") for e in rtmr1(kernel(), b"i", PROFILE, memory=GIB, retries=n)), "sha384")[
            "RTMR1"
        ]
        for n in range(3)
    }
    assert len(found) == 3


def test_rtmr0_needs_what_the_host_adds() -> None:
    """Without the host's tables its value is unknown, with them it is not; too few are refused."""
    firmware_ = layout((0x811000, 0xF000), b"v")
    events, left = rtmr0(firmware_, PROFILE, None, memory=GIB)
    assert left is not None
    assert replay(events, "sha384") == {"RTMR0": None}
    host = HostEvents(acpi=(b"\1" * 48, b"\2" * 48, b"\3" * 48), smbios=None, source="a test")
    events, left = rtmr0(firmware_, PROFILE, host, memory=GIB)
    assert left is None
    assert replay(events, "sha384")["RTMR0"] is not None
    with pytest.raises(ImageError, match="host's events are 1"):
        rtmr0(firmware_, PROFILE, replace(host, acpi=(b"\1" * 48,)), memory=GIB)


def test_profiles_differ_where_they_must() -> None:
    """The header that QEMU fills in moves PCR 4, the form of the command line PCR 9."""
    values = {
        name: replay(pcr.direct(kernel(), b"i", "ro", profile, memory=2 * GIB).events, "sha256")
        for name, profile in PROFILES.items()
    }
    old, mid, new = (values[f"qemu10-edk2-{v}"] for v in ("2022.11", "2025.02", "2026.08"))
    assert values["qemu7.2-edk2-2022.11"] == old
    assert old["PCR4"] != mid["PCR4"] == new["PCR4"]
    assert old["PCR9"] == mid["PCR9"] != new["PCR9"]
    with pytest.raises(ImageError, match="no profile 'qemu11'"):
        profile_named("qemu11")


def test_a_unified_image() -> None:
    """PCRs 4, 9, 11 and 12 under a stub that adds nothing; PCR 9 is left out under one that does."""
    image = unified(kernel(), b"initrd", b"ro quiet")
    found = pcr.unified(image)
    values = replay(found.events, "sha256")
    measured = found.measurement()
    assert (measured.pcr4, measured.pcr9, measured.pcr11) == (values["PCR4"], values["PCR9"], values["PCR11"])
    assert measured.pcr12 == bytes(32)
    assert [e.what for e in found.events if e.register == "PCR11"][::2] == [
        f"name {name}" for name in (".linux", ".osrel", ".cmdline", ".initrd")
    ]
    later = pcr.unified(unified(kernel(), b"initrd", b"ro quiet", stub=257))
    assert later.measurement().pcr9 is None
    assert "PCR9" in [left.register for left in later.left_out]
    for other in (unified(kernel(), b"initrd!", b"ro quiet"), unified(kernel(), b"initrd", b"rw quiet")):
        moved = pcr.unified(other).measurement()
        assert moved.pcr4 != measured.pcr4
        assert moved.pcr9 != measured.pcr9
        assert moved.pcr11 != measured.pcr11


@pytest.mark.parametrize("image", [program(), b"MZ", unified(b"no kernel", b"i", b"ro")])
def test_no_unified_image(image: bytes) -> None:
    """A program that says nothing of its stub, and one without a kernel."""
    with pytest.raises(ImageError):
        pcr.unified(image)


@pytest.mark.parametrize("disk", [b"", bytes(40000), bytes(512) + b"EFI PART".ljust(600, b"\xff")])
def test_no_partition_table(disk: bytes) -> None:
    """What is no disk, or a broken one."""
    with pytest.raises(ImageError, match="partition table"):
        efi.partition_table(disk)


def test_shapes() -> None:
    """Named ones, and any that their name describes."""
    assert shape_named("h200x8").gpus == 8
    own = shape_named("8cpu-64gib-1gpu")
    assert (own.name, own.cpus, own.memory, own.gpus) == ("8cpu-64gib-1gpu", 8, 64 * GIB, 1)
    for bad in ("", "big", "0cpu-4gib", "8cpu-64gib-", "8cpu-64gib-0gpu"):
        with pytest.raises(ImageError, match="no shape"):
            shape_named(bad)
