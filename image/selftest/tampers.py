"""What a host can change about an image, and what catches each: the boot stops with a named line, or a register moves.

docs/rebuild.md has this table; a test holds it there, and the self-test boots every line of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from image.build import padded
from image.errors import ImageError
from image.guest.cmdline import Measured, command_line, parse_command_line
from image.selftest.world import EMULATED, Image

_CPIO = b"070701"
_TIME = slice(46, 54)  # of an entry's header: c_mtime, eight hexadecimal digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Stops:
    """The machine never gets to the gateway."""

    line: str  # what its console says
    catches: str

    def __str__(self) -> str:
        return f"{self.catches}: the boot stops with `{self.line}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """The machine boots and serves, but shows a register that nobody predicted; a client refuses it before it sends anything."""

    register: str
    what: str  # the first event that differs

    def __str__(self) -> str:
        return f"the measurement: {self.register} differs, first at its event “{self.what}”; clients refuse with `vtpm.pcr`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tamper:
    """One change. `change` writes what it needs to the folder."""

    name: str
    caught: Stops | Moves
    change: Callable[[Image, Path], Image]
    tries_way_out: bool = (
        False  # it runs the configuration that has the gateway connect where no rule lets it
    )


def _root_byte(image: Image, folder: Path) -> Image:
    disk = folder / "root.img"
    shutil.copyfile(image.disks["enclave-root"], disk)
    with disk.open("r+b") as file:
        file.seek(1024)  # where the kernel looks for the file system
        first = file.read(1)
        file.seek(1024)
        file.write(bytes([first[0] ^ 1]))
    return replace(image, disks={**image.disks, "enclave-root": disk})


def _root_hash(image: Image, _: Path) -> Image:
    measured = parse_command_line(image.line.encode())
    root = replace(
        measured.root, root_hash=bytes([measured.root.root_hash[0] ^ 1]) + measured.root.root_hash[1:]
    )
    return replace(image, line=command_line(replace(measured, root=root), also=EMULATED))


def _config_disk(image: Image, folder: Path) -> Image:
    disk = folder / "config.img"
    disk.write_bytes(padded(image.other_config))
    return replace(image, disks={**image.disks, "enclave-config": disk})


def _config(image: Image, folder: Path) -> Image:
    root = parse_command_line(image.line.encode()).root
    line = command_line(Measured(root=root, config=sha256(image.other_config).digest()), also=EMULATED)
    return replace(_config_disk(image, folder), line=line)


def _word(image: Image, _: Path) -> Image:
    return replace(image, line=f"{image.line} init=/bin/sh")


def _initrd(image: Image, folder: Path) -> Image:
    content = bytearray(image.initrd.read_bytes())
    if not content.startswith(_CPIO):
        raise ImageError("the initrd is no plain cpio archive")
    content[_TIME] = b"00000001"
    initrd = folder / "initrd"
    initrd.write_bytes(content)
    return replace(image, initrd=initrd)


TAMPERS = (
    Tamper(
        name="one bit of the root's disk",
        caught=Stops(line="dm-verity device corrupted", catches="dm-verity in the kernel"),
        change=_root_byte,
    ),
    Tamper(
        name="the root hash on the command line",
        caught=Stops(line="REFUSED root disk", catches="the image's start"),
        change=_root_hash,
    ),
    Tamper(
        name="the configuration on its disk",
        caught=Stops(line="REFUSED configuration", catches="the image's start"),
        change=_config_disk,
    ),
    Tamper(
        name="a word added to the command line",
        caught=Stops(line="REFUSED command line", catches="the image's start"),
        change=_word,
    ),
    Tamper(
        name="the configuration, and its digest on the command line",
        caught=Moves(register="PCR9", what="command line"),
        change=_config,
        tries_way_out=True,
    ),
    Tamper(
        name="one byte of the initrd",
        caught=Moves(register="PCR9", what="initrd"),
        change=_initrd,
    ),
)


def tamper_table() -> str:
    """As docs/rebuild.md has it."""
    rows = "".join(f"| {tamper.name} | {tamper.caught} |\n" for tamper in TAMPERS)
    return f"| a host changes | what catches it |\n|---|---|\n{rows}"
