"""The kernel's command line: measured, and so the one thing that this program believes without a check.

It says how to open the root and which configuration is meant, and nothing else of ours. Every word has to be known: what is
measured and not understood would be an option of somebody else's. The build writes the line with `command_line`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from image.guest.linux import Refused

ROOT, CONFIG = "enclave.root=", "enclave.config="
# The console; no wait after a panic; no ACPI code from the host but the one table that a PC cannot do without.
FIXED = ("console=ttyS0", "panic=-1", "ro", "acpi_no_static_ssdt")
# Firmware adds the first where QEMU gives it an initrd; the second saves a minute where a CPU is emulated.
OPTIONAL = ("initrd=initrd", "cryptomgr.notests")
_BLOCKS = 1 << 40
_VERITY = re.compile(r"([0-9a-f]{64}):([1-9][0-9]{0,12}):([0-9a-f]{2,512})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """All that has to be said to open a disk: its hash tree lies directly behind its data, without a superblock."""

    root_hash: bytes
    data_blocks: int
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the command line says."""

    root: Verity
    config: bytes  # SHA-256 of the configuration file


def command_line(measured: Measured, *, also: tuple[str, ...] = ()) -> str:
    """The line that says this. `also` are words of OPTIONAL."""
    root = measured.root
    verity = dump_verity(root.root_hash, root.data_blocks, root.salt)
    line = " ".join((*FIXED, *also, f"{ROOT}{verity}", f"{CONFIG}{measured.config.hex()}"))
    parse_command_line(line.encode())
    return line


def parse_command_line(line: bytes) -> Measured:
    """What a line says. Refused: a word that is missing, that nobody knows, or that stands there twice."""
    try:
        # At spaces alone, where the kernel cuts too: of what else Python calls space, the kernel makes part of a word.
        words = [word for word in line.decode("ascii").removesuffix("\n").split(" ") if word]
    except UnicodeDecodeError:
        raise Refused("command line", expected="ASCII", found=line[:80]) from None
    for word in words:
        if word not in (*FIXED, *OPTIONAL) and not word.startswith((ROOT, CONFIG)):
            raise Refused("command line", expected="known words only", found=word[:80])
    for name in (*FIXED, *OPTIONAL, ROOT, CONFIG):
        found = [word for word in words if word == name or ("=" in name[-1:] and word.startswith(name))]
        if len(found) > 1 or (not found and name not in OPTIONAL):
            raise Refused("command line", expected=f"{name} once", found=f"{len(found)} of them")
    return Measured(
        root=parse_verity(_value(words, ROOT), name=f"command line {ROOT}"),
        config=_digest(_value(words, CONFIG)),
    )


def dump_verity(root_hash: bytes, data_blocks: int, salt: bytes) -> str:
    """What `parse_verity` reads."""
    return f"{root_hash.hex()}:{data_blocks}:{salt.hex()}"


def parse_verity(text: str, *, name: str) -> Verity:
    """`root hash:data blocks:salt`, in hex, decimal and hex, as it stands at `name`."""
    found = _VERITY.fullmatch(text)
    if found is None or int(found[2]) > _BLOCKS or len(found[3]) % 2:
        raise Refused(name, expected="<root hash>:<data blocks>:<salt>", found=text[:80])
    return Verity(root_hash=bytes.fromhex(found[1]), data_blocks=int(found[2]), salt=bytes.fromhex(found[3]))


def _value(words: list[str], name: str) -> str:
    values: Iterator[str] = (word.removeprefix(name) for word in words if word.startswith(name))
    return next(values)


def _digest(text: str) -> bytes:
    if not _DIGEST.fullmatch(text):
        raise Refused("command line", expected=f"{CONFIG}<SHA-256>", found=text[:80])
    return bytes.fromhex(text)
