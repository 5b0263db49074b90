"""TDX firmware: the sections that its descriptor lists, MRTD, and the two things it measures before anything else.

TDVF descriptor: Intel TDX Virtual Firmware Design Guide §11. MRTD: Intel TDX Module Base Architecture Specification,
TDH.MEM.PAGE.ADD and TDH.MR.EXTEND. TD HOB: as QEMU makes it (`hw/i386/tdvf-hob.c`) from the TD's memory.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from hashlib import sha384
from uuid import UUID

from image.errors import ImageError
from image.measure.boot_header import low_memory
from image.measure.efi import Measured, measured

_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
_OFFSET = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_FOOTER_END, _ENTRY_TAIL = (
    32,
    18,
)  # the table of GUIDs ends so far before the end; an entry ends with size and GUID
_MAX_SECTIONS, _MAX_MEMORY = 64, 1 << 30
_PAGE, _CHUNK = 4096, 256
_MEASURED, _NOT_ADDED = 1, 2  # section attributes MR.EXTEND and PAGE.AUG
_BFV, _CFV, _TD_HOB, _TEMPORARY = range(4)

_FOUR_GIB = 1 << 32
_SYSTEM, _UNACCEPTED = 0, 7  # EFI_RESOURCE_SYSTEM_MEMORY, EFI_RESOURCE_MEMORY_UNACCEPTED
_PRESENT_INITIALIZED_TESTED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One entry of the descriptor."""

    data: bytes
    address: int
    size: int
    type: int
    attributes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tdvf:
    """A firmware for TDs. `secure_boot` tells whether its variables hold a platform key."""

    sections: tuple[Section, ...]
    secure_boot: bool

    def mrtd(self, passes: int) -> bytes:
        """MRTD: in one pass each page is added and measured at once, in two each section is added first. VMMs differ."""
        state = sha384()
        for section in self.sections:
            pages = range(0, section.size, _PAGE)
            for page in pages:
                if not section.attributes & _NOT_ADDED:
                    state.update(_operation(b"MEM.PAGE.ADD", section.address + page))
                if passes == 1:
                    _extend(state, section, page)
            for page in pages if passes != 1 else ():
                _extend(state, section, page)
        return state.digest()

    def variables(self) -> Measured:
        """The configuration volume: the firmware's variables as it comes (measured into RTMR0)."""
        return measured("firmware's variables (CFV)", "firmware", self._one(_CFV).data)

    def hand_off(self, memory: int) -> Measured:
        """The TD HOB of a TD with so many bytes of memory, without its end mark, as the firmware measures it into RTMR0."""
        start = self._one(_TD_HOB).address
        ranges = self._ranges(memory)
        length = 56 + 48 * len(ranges)
        hob = struct.pack("<HHIIIQQQQQ", 1, 56, 0, 9, 0, 0, 0, 0, 0, start + length + 8)
        for address, size, kind in ranges:
            hob += struct.pack(
                "<HHI16sIIQQ", 3, 48, 0, bytes(16), kind, _PRESENT_INITIALIZED_TESTED, address, size
            )
        return measured("memory handed over (TD HOB)", "memory of the shape, firmware's layout", hob)

    def _ranges(self, memory: int) -> list[tuple[int, int, int]]:
        """Memory by address: what the VMM has added already, and what the TD has to accept."""
        low = low_memory(memory)
        found: list[tuple[int, int, int]] = []
        at = 0
        for section in sorted(self._temporary(), key=lambda s: s.address):
            if section.address < at or section.address + section.size > low:
                raise ImageError("the firmware's sections overlap, or need more memory than the shape has")
            if section.address > at:
                found.append((at, section.address - at, _UNACCEPTED))
            found.append((section.address, section.size, _SYSTEM))
            at = section.address + section.size
        if at < low:
            found.append((at, low - at, _UNACCEPTED))
        return [*found, (_FOUR_GIB, memory - low, _UNACCEPTED)] if memory > low else found

    def _temporary(self) -> list[Section]:
        return [section for section in self.sections if section.type in (_TD_HOB, _TEMPORARY)]

    def _one(self, kind: int) -> Section:
        found = [section for section in self.sections if section.type == kind]
        if len(found) != 1:
            raise ImageError(f"the firmware has {len(found)} sections of type {kind}, expected one")
        return found[0]


def parse_tdvf(firmware: bytes) -> Tdvf:
    """The sections of a firmware for TDs; ImageError where it is none."""
    table = guid_table(firmware)
    if _OFFSET not in table or len(table[_OFFSET]) != 4:
        raise ImageError("the firmware is none for TDX: it has no TDVF descriptor")
    at = len(firmware) - int.from_bytes(table[_OFFSET], "little")
    head = firmware[at : at + 16] if at >= 0 else b""
    count = int.from_bytes(head[12:], "little")
    if head[:4] != b"TDVF" or head[8:12] != b"\1\0\0\0" or not 0 < count <= _MAX_SECTIONS:
        raise ImageError("the firmware's TDVF descriptor is not one of version 1")
    sections = tuple(_section(firmware, at + 16 + 32 * i) for i in range(count))
    if sum(section.size for section in sections) > _MAX_MEMORY:
        raise ImageError("the firmware's sections are larger than any firmware's")
    volumes = b"".join(section.data for section in sections if section.type == _CFV)
    return Tdvf(sections=sections, secure_boot=_has_platform_key(volumes))


def guid_table(firmware: bytes) -> dict[UUID, bytes]:
    """OVMF's table of values by GUID, at the end of the firmware (OvmfPkg/ResetVector)."""
    end = len(firmware) - _FOOTER_END
    if end < _ENTRY_TAIL or firmware[end - 16 : end] != _FOOTER.bytes_le:
        raise ImageError("the firmware has no table of values at its end: expected an OVMF.fd, in one file")
    size = int.from_bytes(firmware[end - _ENTRY_TAIL : end - 16], "little")
    if not _ENTRY_TAIL <= size <= end:
        raise ImageError("the firmware's table of values is cut off")
    rest, found = firmware[end - size : end - _ENTRY_TAIL], dict[UUID, bytes]()
    while rest:
        length = int.from_bytes(rest[-_ENTRY_TAIL:-16], "little")
        if not _ENTRY_TAIL <= length <= len(rest):
            raise ImageError("the firmware's table of values is broken")
        found[UUID(bytes_le=rest[-16:])] = rest[len(rest) - length : len(rest) - _ENTRY_TAIL]
        rest = rest[: len(rest) - length]
    return found


def _section(firmware: bytes, at: int) -> Section:
    entry = firmware[at : at + 32]
    if len(entry) != 32:
        raise ImageError("the firmware's TDVF descriptor is cut off")
    offset, length, address, size, kind, attributes = struct.unpack("<IIQQII", entry)
    data = firmware[offset : offset + length]
    if len(data) != length or length > size or address % _PAGE or size % _PAGE or size > _MAX_MEMORY:
        raise ImageError(
            f"section {kind} of the firmware does not fit: {length} of {size} bytes at {address:#x}"
        )
    return Section(data=data, address=address, size=size, type=kind, attributes=attributes)


def _operation(name: bytes, address: int) -> bytes:
    return name.ljust(16, b"\0") + address.to_bytes(8, "little") + bytes(104)


def _extend(state: hashlib._Hash, section: Section, page: int) -> None:
    if not section.attributes & _MEASURED:
        return
    content = section.data[page : page + _PAGE].ljust(_PAGE, b"\0")
    for at in range(0, _PAGE, _CHUNK):
        state.update(_operation(b"MR.EXTEND", section.address + page + at))
        state.update(content[at : at + _CHUNK])


def _has_platform_key(volumes: bytes) -> bool:
    """Whether a variable PK is there and valid: its header begins 55AA and says VAR_ADDED, its name follows."""
    name, head = "PK\0".encode("utf-16-le"), 60  # AUTHENTICATED_VARIABLE_HEADER
    at = volumes.find(name)
    while at >= 0:
        header = volumes[max(at - head, 0) : at]
        if len(header) == head and header[:3] == b"\xaa\x55\x3f":
            return True
        at = volumes.find(name, at + 2)
    return False
