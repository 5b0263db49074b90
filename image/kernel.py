"""Debian's kernel: the file that boots, and those of its modules that the guest loads, in an order that works."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from image.errors import ImageError
from image.guest.modules import dependencies, name_of


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
    files = {name_of(path): path for path in sorted(folder.rglob("*.ko*"))}
    builtin = {name_of(Path(line)) for line in (folder / "modules.builtin").read_text().splitlines()}
    found: dict[str, bytes] = {}
    for name in needed:
        _add(name.replace("-", "_"), files, builtin, found)
    return Kernel(release=release, vmlinuz=images[0].read_bytes(), modules=tuple(found.items()))


def _add(name: str, files: dict[str, Path], builtin: set[str], found: dict[str, bytes]) -> None:
    if name in found or name in builtin:
        return
    if name not in files:
        raise ImageError(f"the kernel has no module {name}")
    content = files[name].read_bytes()
    content = lzma.decompress(content) if files[name].suffix == ".xz" else content
    needed = dependencies(content)
    if needed is None:
        raise ImageError(f"the kernel module {name} does not say what it depends on")
    for other in needed:
        _add(other, files, builtin, found)
    found[name] = content
