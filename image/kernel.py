"""Debian's kernel: the file that boots, and those of its modules that the guest loads, in an order that works."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from image.errors import ImageError

_DEPENDS = re.compile(rb"\0depends=([a-zA-Z0-9_,-]*)\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """`modules` are names and contents; each comes after those it depends on."""

    release: str
    vmlinuz: bytes
    modules: tuple[tuple[str, bytes], ...]


def read_kernel(tree: Path, needed: Iterable[str]) -> Kernel:
    """The kernel of an unpacked package, with the modules `needed` that it does not have built in."""
    images = sorted(tree.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise ImageError(f"the kernel's package has {len(images)} files boot/vmlinuz-…, not one")
    release = images[0].name.removeprefix("vmlinuz-")
    folder = tree / "lib" / "modules" / release
    if not folder.exists():
        folder = tree / "usr" / "lib" / "modules" / release
    files = {_name(path): path for path in sorted(folder.rglob("*.ko*"))}
    builtin = {_name(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()}
    found: dict[str, bytes] = {}
    for name in needed:
        _add(name.replace("-", "_"), files, builtin, found)
    return Kernel(release=release, vmlinuz=images[0].read_bytes(), modules=tuple(found.items()))


def dependencies(module: bytes) -> list[str]:
    """What a module says it needs. Its section `.modinfo` is NUL-separated words, and no other section has this one."""
    match = _DEPENDS.search(module)
    if match is None:
        raise ImageError("a kernel module does not say what it depends on")
    return [name.replace("-", "_") for name in match[1].decode().split(",") if name]


def _add(name: str, files: dict[str, Path], builtin: set[str], found: dict[str, bytes]) -> None:
    if name in found or name in builtin:
        return
    if name not in files:
        raise ImageError(f"the kernel has no module {name}")
    content = files[name].read_bytes()
    content = lzma.decompress(content) if files[name].suffix == ".xz" else content
    for other in dependencies(content):
        _add(other, files, builtin, found)
    found[name] = content


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")
