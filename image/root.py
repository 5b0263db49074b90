"""The root: Dockerfile.enclave's file system with the guest's code in it, as EROFS with a dm-verity tree behind."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from enclave_server.verity import Verity, append_tree
from image.container import EPOCH
from image.initrd import HOME, PYTHON
from image.tools import run

SALT = sha256(b"attested-inference/image/root/v1").digest()
_COMPILE = ("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", HOME)


def add_guest(root: Path, source: Path) -> None:
    """What runs as process 1, from the project's copy, compiled by the image's own Python."""
    home = root / HOME.relative_to("/")
    (home / "image" / "guest").mkdir(parents=True)
    files = (
        "image/__init__.py",
        *(f"image/guest/{path.name}" for path in (source / "image" / "guest").glob("*.py")),
    )
    for name in files:
        shutil.copyfile(source / name, home / name)
    environment = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": EPOCH}
    run("chroot", root, PYTHON, "-S", *_COMPILE, environment=environment)
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.name == "init.py" else 0o644)


def make_root(root: Path, out: Path) -> Verity:
    """Write the disk of this file system. The same files make the same bytes, whatever their times and order on this disk."""
    uuid = UUID(bytes=SALT[:16])
    run("mkfs.erofs", "--quiet", "-T0", f"-U{uuid}", "-x-1", out, root)
    return append_tree(out, SALT)
