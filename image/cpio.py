"""Archives of the format that the kernel unpacks as its first file system: cpio, "newc". No owner, no time, sorted."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from image.errors import ImageError

_MAGIC = b"070701"
_HEADER = 110  # magic, then 13 numbers of 8 hexadecimal digits
_END = "TRAILER!!!"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file, a folder or a link. `name` has no slash in front; a link's content is where it leads."""

    name: str
    mode: int
    content: bytes = b""


def folder(name: str) -> Member:
    return Member(name=name, mode=stat.S_IFDIR | 0o755)


def file(name: str, content: bytes, *, executable: bool = False) -> Member:
    return Member(name=name, mode=stat.S_IFREG | (0o755 if executable else 0o644), content=content)


def link(name: str, target: str) -> Member:
    return Member(name=name, mode=stat.S_IFLNK | 0o777, content=target.encode())


def write_cpio(members: Iterable[Member]) -> bytes:
    """The archive, with every folder on the way to a member."""
    by_name = {member.name: member for member in members}
    for name in list(by_name):
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            by_name.setdefault(parent := "/".join(parts[:count]), folder(parent))
    # Sorted, a folder comes before what is in it, as unpacking demands.
    ordered = [*(by_name[name] for name in sorted(by_name)), Member(name=_END, mode=0)]
    return b"".join(
        _entry(0 if member.name == _END else number, member) for number, member in enumerate(ordered, start=1)
    )


def read_cpio(data: bytes) -> Iterator[Member]:
    """The members of an archive written by `write_cpio`."""
    offset = 0
    while True:
        header = data[offset : offset + _HEADER]
        if len(header) != _HEADER or not header.startswith(_MAGIC):
            raise ImageError(f"the initrd is no cpio archive at byte {offset}")
        numbers = [int(header[start : start + 8], 16) for start in range(6, _HEADER, 8)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name_end = offset + _HEADER + length
        name = data[offset + _HEADER : name_end - 1].decode()
        start = _aligned(name_end)
        if name == _END:
            return
        yield Member(name=name, mode=mode, content=data[start : start + size])
        offset = _aligned(start + size)


def _entry(number: int, member: Member) -> bytes:
    name = member.name.encode() + b"\0"
    links = 0 if number == 0 else 2 if stat.S_ISDIR(member.mode) else 1
    # ino, mode, uid, gid, nlink, mtime, size, two devices of two parts each, name's size, check
    fields = (number, member.mode, 0, 0, links, 0, len(member.content), 0, 0, 0, 0, len(name), 0)
    head = _MAGIC + b"".join(b"%08x" % field for field in fields) + name
    return _padded(head) + _padded(member.content)


def _padded(data: bytes) -> bytes:
    return data + bytes(_aligned(len(data)) - len(data))


def _aligned(offset: int) -> int:
    return (offset + 3) & ~3
