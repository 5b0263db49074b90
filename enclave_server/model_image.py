"""A model as one read-only disk: an EROFS image, and behind it the dm-verity tree by which the kernel checks each block.

The salt of the tree and the file system's UUID come from the model's id, so that the same files with the same id (and
the same `mkfs.erofs`) give the same bytes and the same root hash everywhere. There is no verity superblock: whoever opens
the image says everything, and nothing that is not authenticated is believed. docs/models.md has the layout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from enclave_server.model import ModelError, ModelProblem

BLOCK = 4096
_PER_BLOCK = BLOCK // 32  # digests in a block of the tree
_AT_ONCE = 64 * _PER_BLOCK  # blocks that are read at once
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}@[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What has to be said to open an image."""

    root_hash: bytes
    salt: bytes
    data_blocks: int

    def command(self, path: Path) -> str:
        return (
            f"veritysetup open {path} model {path} {self.root_hash.hex()} --no-superblock "
            f"--data-blocks={self.data_blocks} --hash-offset={self.data_blocks * BLOCK} --salt={self.salt.hex()}"
        )


def salt_of(model_id: str) -> bytes:
    """The tree's salt: SHA-256 of the id, which is `repo@revision`."""
    if not _ID.fullmatch(model_id):
        raise ModelError(
            ModelProblem.ID, f"{model_id!r} is no repo@revision", advice="Give one, such as me/model@9f3c2d1"
        )
    return sha256(model_id.encode()).digest()


def make_image(directory: Path, out: Path, model_id: str) -> Image:
    """Write the image of `directory` to `out`."""
    salt = salt_of(model_id)
    _check_alike(directory)
    if out.resolve().is_relative_to(directory.resolve()):
        raise _bad_image(f"{out} would lie in the model itself", "Write it elsewhere")
    partial = out.with_name(out.name + ".partial")
    try:
        _make_erofs(directory, partial, UUID(bytes=salt[:16]))
        with partial.open("r+b") as file:
            data_blocks = os.fstat(file.fileno()).st_size // BLOCK
            for offset, block in _tree(file, data_blocks, salt):
                file.seek(offset)
                file.write(block)
            image = Image(root_hash=_root(file, data_blocks, salt), salt=salt, data_blocks=data_blocks)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return image


def verify_image(path: Path, root_hash: bytes, model_id: str) -> Image:
    """Compute the tree of an image anew: it must be the one in the image, and have this root hash."""
    salt = salt_of(model_id)
    with path.open("rb") as file:
        data_blocks = _data_blocks(path, os.fstat(file.fileno()).st_size)
        whole = True
        for offset, block in _tree(file, data_blocks, salt):
            file.seek(offset)
            whole = whole and file.read(len(block)) == block
        found = _root(file, data_blocks, salt)
    if not whole or found != root_hash:
        raise _bad_image(
            f"{path} has not the root hash {root_hash.hex()} as {model_id}"
            + ("" if whole else ": its blocks and its hash tree contradict each other"),
            "Its bytes were changed, or root hash or id are another image's: make it again, or copy it again",
        )
    return Image(root_hash=found, salt=salt, data_blocks=data_blocks)


def _make_erofs(directory: Path, out: Path, uuid: UUID) -> None:
    program = shutil.which("mkfs.erofs")
    if program is None:
        raise _bad_image("there is no mkfs.erofs", "Install erofs-utils")
    done = subprocess.run(  # noqa: S603 - found on the operator's own path
        [program, "--quiet", "-T0", f"-U{uuid}", "-x-1", "--all-root", out, directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise _bad_image(f"mkfs.erofs failed: {done.stderr.strip()[-300:]}", "Mend what it names")


def _check_alike(directory: Path) -> None:
    """Modes and links get into the image: they have to be the same wherever it is made."""
    for folder, _, files in os.walk(directory):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            status = path.lstat()
            plain = path.is_dir() or (path.is_file() and not path.is_symlink() and status.st_nlink == 1)
            if not plain or status.st_mode & 0o7777 != (0o755 if path.is_dir() else 0o644):
                raise ModelError(
                    ModelProblem.FILE,
                    f"{path} is a link, or has the mode {status.st_mode & 0o7777:o}; in an image files have 644 "
                    "and directories 755, so that it is the same everywhere",
                    advice=f"Copy the model with its links followed (cp -rL), then chmod -R u=rwX,go=rX {directory}",
                )


def _levels(data_blocks: int) -> list[tuple[int, int]]:
    """First block and count of each level of the tree, from the one above the data up to the single block."""
    counts = []
    count = data_blocks
    while count > 1:
        count = -(-count // _PER_BLOCK)
        counts.append(count)
    return [(data_blocks + sum(counts[i + 1 :]), count) for i, count in enumerate(counts)]


def _tree(file: BinaryIO, data_blocks: int, salt: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and content of every part of the tree. Each level is computed from the one below, as the file has it by then."""
    below, count = 0, data_blocks
    for first, blocks in _levels(data_blocks):
        offset = first * BLOCK
        for start in range(0, count, _AT_ONCE):
            file.seek((below + start) * BLOCK)
            read = file.read(min(_AT_ONCE, count - start) * BLOCK)
            digests = b"".join(_digests(read, salt))
            part = digests + bytes(-len(digests) % BLOCK)
            yield offset, part
            offset += len(part)
        below, count = first, blocks


def _root(file: BinaryIO, data_blocks: int, salt: bytes) -> bytes:
    levels = _levels(data_blocks)
    file.seek(levels[-1][0] * BLOCK if levels else 0)
    return sha256(salt + file.read(BLOCK)).digest()


def _digests(blocks: bytes, salt: bytes) -> Iterator[bytes]:
    salted, view = sha256(salt), memoryview(blocks)
    for start in range(0, len(blocks), BLOCK):
        digest = salted.copy()
        digest.update(view[start : start + BLOCK])
        yield digest.digest()


def _data_blocks(path: Path, size: int) -> int:
    """How many of an image's blocks are data: the rest is their tree."""
    total, low, high = size // BLOCK, 1, max(1, size // BLOCK)
    while low < high:
        middle = (low + high + 1) // 2
        if middle + _tree_blocks(middle) <= total:
            low = middle
        else:
            high = middle - 1
    if size % BLOCK or low + _tree_blocks(low) != total:
        raise _bad_image(f"{path} has {size} bytes, which is no image with its tree", "Copy it again")
    return low


def _tree_blocks(data_blocks: int) -> int:
    return sum(count for _, count in _levels(data_blocks))


def _bad_image(detail: str, advice: str) -> ModelError:
    return ModelError(ModelProblem.IMAGE, detail, advice=advice)
