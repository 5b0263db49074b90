"""The initrd: Python, as much of its standard library as the guest's first process imports, that process, and kernel modules.

What it imports is asked of the image's own Python, in the image's own file system; so it is what will be imported. There is
no shell in it and no other program.
"""

from __future__ import annotations

import re
from pathlib import Path

from image import cpio
from image.errors import ImageError
from image.guest.modules import LIST
from image.kernel import Kernel
from image.tools import run

HOME = Path("/usr/lib/enclave")  # where the guest's code is, in the initrd and in the root
INIT = HOME / "image" / "guest" / "init.py"
PYTHON = Path("/usr/bin/python3.11")
_LOADER = Path("/lib64/ld-linux-x86-64.so.2")
_MERGED = ("lib", "lib64")  # links into /usr, as in the root
# Without OpenSSL, hashlib takes Python's own SHA-256: five megabytes less to measure.
_IMPORTED = f"""
import sys
sys.modules["_hashlib"] = None
sys.path.insert(0, {str(HOME)!r})
import {".".join(INIT.relative_to(HOME).with_suffix("").parts)}
for name, module in sorted(sys.modules.items()):
    if getattr(module, "__file__", None):
        print(name, module.__file__)
"""


def make_initrd(root: Path, kernel: Kernel) -> bytes:
    """The archive, from the root's file system with the guest's code in it."""
    members = [
        cpio.link("init", str(INIT)),
        cpio.file(_name(INIT), _inside(root, INIT).read_bytes(), executable=True),
    ]
    compiled = [PYTHON]
    for line in run(
        "chroot", root, PYTHON, "-ISB", "-c", _IMPORTED, environment={"LC_ALL": "C"}
    ).splitlines():
        name, path = line.split(" ")
        if path.endswith(".so"):
            compiled.append(Path(path))
        elif name != "__main__":
            members.append(_module(root, Path(path)))
    members += [
        cpio.file(_name(path), _inside(root, path).read_bytes(), executable=True)
        for path in sorted({*compiled, *_libraries(root, compiled)})
    ]
    members += [cpio.link(name, str((root / name).readlink())) for name in _MERGED]
    return cpio.write_cpio([*members, *_modules(kernel)])


def _module(root: Path, source: Path) -> cpio.Member:
    """The compiled module alone: Python takes it in the place of its source."""
    pyc = _inside(root, source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc")
    if not pyc.exists():
        raise ImageError(f"{source} is not compiled in the root's file system")
    return cpio.file(_name(source.with_suffix(".pyc")), pyc.read_bytes())


def _libraries(root: Path, compiled: list[Path]) -> set[Path]:
    found = {_LOADER}
    for file in compiled:
        listed = run("chroot", root, _LOADER, "--list", file)
        found |= {Path(path) for path in re.findall(r" => (\S+) \(0x", listed)}
    return {Path("/usr") / path.relative_to("/") if path.parts[1] in _MERGED else path for path in found}


def _modules(kernel: Kernel) -> list[cpio.Member]:
    files = [(LIST.parent / "modules" / f"{name}.ko", content) for name, content in kernel.modules]
    listed = "".join(f"{path}\n" for path, _ in files)
    return [
        cpio.file(_name(LIST), listed.encode()),
        *(cpio.file(_name(path), content) for path, content in files),
    ]


def _name(path: Path) -> str:
    return str(path.relative_to("/"))


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")
