"""Builds an image again, elsewhere, and says where the two differ: the first file, and what inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from image.build import DESCRIPTION, DISK, digest_of, read_description
from image.cpio import read_cpio
from image.errors import ImageError
from image.pe import read_sections
from image.source import clone_source
from image.tools import run

_NAMED = 3  # of the paths that differ


def repeat(out: Path) -> str:
    """One line that says that both are the same. Raises otherwise."""
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}-again-") as made:
        again = Path(made) / "elsewhere" / "image"
        build_again(out, again)
        if difference := first_difference(out, again):
            raise ImageError(f"the second build differs: {difference}")
        return f"{out}: twice the same, build {read_description(again)['id']}"


def build_again(out: Path, again: Path) -> None:
    """From nothing: in a clone elsewhere, on a machine of another name, under another umask. Only what hashes pin comes along."""
    description = read_description(out)
    clone = again.parent / "another" / "clone"
    clone_source(clone, description["source"])
    build = ("-m", "enclave_server", "image", "build", "-o", str(again), "--target", description["target"])
    disk = ("--disk",) if (out / DISK).exists() else ()
    command = (sys.executable, *build, "--config", str((out / "enclave.toml").resolve()), *disk)
    elsewhere = ("unshare", "--uts", "sh", "-c", 'hostname elsewhere && exec "$@"', "sh")
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    done = subprocess.run((*elsewhere, *command), cwd=clone, env=environment, umask=0o077, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ImageError("the second build failed", status=done.returncode)


def first_difference(one: Path, other: Path) -> str | None:
    """Where two images differ, in words: the first file, and what inside it."""
    names = sorted({path.name for folder in (one, other) for path in folder.iterdir()} - {DESCRIPTION})
    # What others are made of comes first, so that what is named is the cause.
    order = ["root.img", "initrd", "vmlinuz", "enclave.toml", "config.img"]
    for name in [*(name for name in order if name in names), *(name for name in names if name not in order)]:
        first, second = one / name, other / name
        if not (first.exists() and second.exists()):
            return f"{name} is only in {(one if first.exists() else other)}"
        if digest_of(first) != digest_of(second):
            inside = _inside(name, first, second)
            return f"{name}, " + (inside or f"from byte {_first_byte(first, second)}")
    found, expected = read_description(one), read_description(other)
    for field in expected:
        if found.get(field) != expected[field]:
            return f"{DESCRIPTION}, {field}"
    return None


def _inside(name: str, first: Path, second: Path) -> str | None:
    match name:
        case "root.img":
            with tempfile.TemporaryDirectory() as made:
                trees = Path(made) / "first", Path(made) / "second"
                for image, tree in zip((first, second), trees, strict=True):
                    tree.mkdir()
                    run("fsck.erofs", f"--extract={tree}", "--overwrite", "--preserve", image)
                return _some(list(different_paths(*trees)))
        case "initrd":
            return _first_name(
                {member.name: (member.mode, member.content) for member in read_cpio(first.read_bytes())},
                {member.name: (member.mode, member.content) for member in read_cpio(second.read_bytes())},
            )
        case "enclave.efi":
            return _first_name(read_sections(first.read_bytes()), read_sections(second.read_bytes()))
        case _:
            return None


def different_paths(one: Path, other: Path) -> Iterator[str]:
    """The paths, seen from the root of both trees, that are not the same in both: in kind, rights, owner or content.

    What is made of other files comes last: compiled modules, and pip's lists of digests.
    """
    names = sorted(
        {path.relative_to(tree) for tree in (one, other) for path in tree.rglob("*")},
        key=lambda path: (path.name == "RECORD" or "__pycache__" in path.parts, path),
    )
    for name in names:
        states = [_state(tree / name) for tree in (one, other)]
        if states[0] != states[1]:
            what = next((a or b)[0] for a, b in zip_longest(*states, fillvalue=()) if a != b)
            yield f"/{name} ({what})"


def _some(names: list[str]) -> str | None:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more or None


def _state(path: Path) -> list[tuple[str, object]]:
    if not path.is_symlink() and not path.exists():
        return [("missing in one", True)]
    status = path.lstat()
    state: list[tuple[str, object]] = [("mode", status.st_mode), ("owner", (status.st_uid, status.st_gid))]
    if path.is_symlink():
        state.append(("link", path.readlink()))
    elif path.is_file():
        state.append(("content", digest_of(path)))
    return state


def _first_name(one: Mapping[str, object], other: Mapping[str, object]) -> str | None:
    for name in sorted(one.keys() | other.keys()):
        if one.get(name) != other.get(name):
            return name
    return None


def _first_byte(first: Path, second: Path) -> int:
    with first.open("rb") as one, second.open("rb") as other:
        offset = 0
        while (a := one.read(1 << 20)) == (b := other.read(1 << 20)):
            offset += len(a)
        return offset + next(
            (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
        )
