"""The root's disk: the same files make the same bytes, wherever and whenever they were written."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest

from enclave_server.verity import computed_tree
from image.root import SALT, make_root

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")


def make_tree(folder: Path, seed: int) -> Path:
    """The same tree, written in another order at another time."""
    names = [f"{folder}/{name}" for name in ("", "a/b/", "a/c/", "d/") for folder in ("usr", "etc")]
    files = [f"{name}file-{number}" for name in names for number in range(40)]
    random.Random(seed).shuffle(files)
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sha256(name.encode()).digest() * 300)
        path.chmod(0o644)
        os.utime(path, (seed, seed))
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    (folder / "init").symlink_to("usr/file-0")
    return folder


def test_twice_the_same(tmp_path: Path) -> None:
    """Neither the order in which a disk lists its files nor their times get into the image; the tree behind is the data's."""
    elsewhere = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path  # noqa: S108 - another file system
    with tempfile.TemporaryDirectory(dir=elsewhere) as other:
        trees = [make_tree(tmp_path / "one", 1), make_tree(Path(other) / "two", 2)]
        made = [make_root(tree, tmp_path / f"{tree.name}.img") for tree in trees]
    assert made[0] == made[1]
    assert (tmp_path / "one.img").read_bytes() == (tmp_path / "two.img").read_bytes()
    assert computed_tree(tmp_path / "one.img", made[0].data_blocks, SALT) == (made[0], True)
