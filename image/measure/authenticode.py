"""Files that firmware starts: their digest as it is measured (Authenticode), and the sections of a unified kernel image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import new

from image.errors import ImageError

_PE32, _PE32_PLUS = 0x10B, 0x20B
_CERTIFICATE_TABLE = 4  # its place among the data directories


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of a PE file."""

    name: str
    offset: int  # in the file
    raw_size: int
    virtual_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pe:
    """What of a PE file decides its digest."""

    data: bytes
    checksum: int  # offsets in the file
    certificate_entry: int
    size_of_headers: int
    certificates: int  # how many bytes at the end are signatures
    sections: tuple[Section, ...]

    def authenticode(self, algorithm: str) -> bytes:
        """The digest that firmware measures and a Secure Boot signature is over: everything but checksum and signatures.

        Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash".
        """
        state = new(algorithm)
        for start, end in self._hashed():
            state.update(memoryview(self.data)[start:end])
        return state.digest()

    def _hashed(self) -> Iterator[tuple[int, int]]:
        yield 0, self.checksum
        yield self.checksum + 4, self.certificate_entry
        yield self.certificate_entry + 8, self.size_of_headers
        done = self.size_of_headers
        for section in sorted(self.sections, key=lambda s: s.offset):
            if section.raw_size:
                yield section.offset, section.offset + section.raw_size
                done += section.raw_size
        if done + self.certificates < len(self.data):
            yield done, len(self.data) - self.certificates

    def section(self, name: str) -> bytes | None:
        """The content of a section as it lies in memory, without the padding in the file."""
        found = next((s for s in self.sections if s.name == name), None)
        if found is None:
            return None
        size = min(found.virtual_size, found.raw_size)
        return self.data[found.offset : found.offset + size] + bytes(found.virtual_size - size)


def parse_pe(data: bytes, what: str) -> Pe:
    """The PE file in `data`; ImageError where it is none, named as `what`."""
    view = _View(data, what)
    if view.take(0, 2) != b"MZ":
        raise view.error("it does not begin with MZ")
    header = view.uint(0x3C, 4)
    if view.take(header, 4) != b"PE\0\0":
        raise view.error("no PE header where it should be")
    count, optional_size, optional = view.uint(header + 6, 2), view.uint(header + 20, 2), header + 24
    magic = view.uint(optional, 2)
    if magic not in (_PE32, _PE32_PLUS):
        raise view.error(f"optional header {magic:#x}")
    directories = optional + (112 if magic == _PE32_PLUS else 96)
    entry = directories + 8 * _CERTIFICATE_TABLE
    if view.uint(directories - 4, 4) <= _CERTIFICATE_TABLE:
        raise view.error("no place for signatures in its header")
    sections = tuple(view.section(optional + optional_size + 40 * i) for i in range(count))
    headers, certificates = view.uint(optional + 60, 4), view.uint(entry + 4, 4)
    signed = view.uint(entry, 4) + certificates
    if not entry + 8 <= headers <= len(data) - certificates or signed > len(data):
        raise view.error("headers or signatures beyond its end")
    return Pe(
        data=data,
        checksum=optional + 64,
        certificate_entry=entry,
        size_of_headers=headers,
        certificates=certificates,
        sections=sections,
    )


@dataclass(frozen=True, slots=True)
class _View:
    data: bytes
    what: str

    def take(self, offset: int, size: int) -> bytes:
        found = self.data[offset : offset + size]
        if len(found) != size:
            raise self.error(f"it ends within {size} bytes at {offset:#x}")
        return found

    def uint(self, offset: int, size: int) -> int:
        return int.from_bytes(self.take(offset, size), "little")

    def section(self, offset: int) -> Section:
        found = Section(
            name=self.take(offset, 8).rstrip(b"\0").decode("latin-1"),
            virtual_size=self.uint(offset + 8, 4),
            raw_size=self.uint(offset + 16, 4),
            offset=self.uint(offset + 20, 4),
        )
        if found.offset + found.raw_size > len(self.data):
            raise self.error(f"section {found.name!r} goes beyond its end")
        if found.virtual_size > len(self.data) + (64 << 20):  # what is not in the file is zeros
            raise self.error(f"section {found.name!r} is larger than any that is used here")
        return found

    def error(self, detail: str) -> ImageError:
        return ImageError(f"{self.what} is no PE file: {detail}")
