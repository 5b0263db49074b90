"""dm-verity without a superblock: the tree of digests behind a disk's data, by which the kernel checks each block that it reads.

Whoever opens the disk says root hash, salt and number of data blocks; nothing that is not authenticated is believed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

BLOCK = 4096
_PER_BLOCK = BLOCK // 32  # digests in a block of the tree
_AT_ONCE = 64 * _PER_BLOCK  # blocks that are read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Verity:
    """What has to be said to open a disk."""

    root_hash: bytes
    salt: bytes
    data_blocks: int

    def command(self, path: Path, name: str) -> str:
        return (
            f"veritysetup open {path} {name} {path} {self.root_hash.hex()} --no-superblock "
            f"--data-blocks={self.data_blocks} --hash-offset={self.data_blocks * BLOCK} --salt={self.salt.hex()}"
        )


def append_tree(path: Path, salt: bytes) -> Verity:
    """Write the tree behind the data of a file, which are whole blocks."""
    with path.open("r+b") as file:
        data_blocks = os.fstat(file.fileno()).st_size // BLOCK
        for offset, block in _tree(file, data_blocks, salt):
            file.seek(offset)
            file.write(block)
        return Verity(root_hash=_root(file, data_blocks, salt), salt=salt, data_blocks=data_blocks)


def computed_tree(path: Path, data_blocks: int, salt: bytes) -> tuple[Verity, bool]:
    """What opens a file with its tree, computed anew, and whether that tree is the one in the file."""
    with path.open("rb") as file:
        whole = True
        for offset, block in _tree(file, data_blocks, salt):
            file.seek(offset)
            whole = whole and file.read(len(block)) == block
        return Verity(root_hash=_root(file, data_blocks, salt), salt=salt, data_blocks=data_blocks), whole


def data_blocks_of(size: int) -> int | None:
    """How many blocks of a file of this size are data, when the rest is their tree; None where that cannot be."""
    total, low, high = size // BLOCK, 1, max(1, size // BLOCK)
    while low < high:
        middle = (low + high + 1) // 2
        if middle + tree_blocks(middle) <= total:
            low = middle
        else:
            high = middle - 1
    return low if size % BLOCK == 0 and low + tree_blocks(low) == total else None


def tree_blocks(data_blocks: int) -> int:
    return sum(count for _, count in _levels(data_blocks))


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
