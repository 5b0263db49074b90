"""Tiles (c2sp.org/tlog-tiles): a tree's hashes and entries in files of 256, which are written once and never change.

`Tree` is the right edge of a growing tree, and says which files a batch of entries makes. `TileReader` gives the hashes of
any complete subtree, read from such files wherever they lie; whoever reads them proves the result against a root.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError
from attestation.tlog.merkle import EMPTY_ROOT, HASH_BYTES, Nodes, complete_root, leaf_hash, node_hash

WIDTH = 256
CHECKPOINT = "checkpoint"
_HEIGHT = 8  # 2**8 is the width
#: Reads a resource below a log's prefix; None when there is none.
Fetch = Callable[[str], bytes | None]


def tile_path(level: int | str, number: int, width: int = WIDTH) -> str:
    """Where a tile lies; `width` below 256 names a partial one, and the level `entries` a bundle of entries."""
    name = f"{number % 1000:03}"
    while number := number // 1000:
        name = f"x{number % 1000:03}/{name}"
    return f"tile/{level}/{name}" + ("" if width == WIDTH else f".p/{width}")


def dump_entries(entries: Sequence[bytes]) -> bytes:
    """A bundle of entries, each after its length."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def parse_entries(data: bytes) -> list[bytes]:
    """The entries of a bundle; there is at least one."""
    entries, at = [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2])
        if at + 2 > len(data) or end > len(data):
            raise MalformedError(Check.LOG_FORMAT, "a bundle of entries ends inside an entry")
        entries.append(data[at + 2 : end])
        at = end
    if not 0 < len(entries) <= WIDTH:
        raise MalformedError(Check.LOG_FORMAT, f"a bundle has 1 to {WIDTH} entries, found {len(entries)}")
    return entries


@dataclass(frozen=True, slots=True)
class Tree:
    """The right edge: what the partial tiles hold. All else of the tree is in complete tiles, and not needed to grow."""

    size: int = 0
    entries: tuple[bytes, ...] = ()  # of the last bundle, while it is partial
    edge: tuple[tuple[bytes, ...], ...] = ()  # the hashes of each level's partial tile

    @property
    def root(self) -> bytes:
        """The root of the whole tree: that of its complete subtrees, from the smallest up."""
        subtrees: list[bytes] = []
        for hashes in reversed(self.edge):
            at = 0
            for power in range(_HEIGHT - 1, -1, -1):
                if len(hashes) >> power & 1:
                    subtrees.append(complete_root(hashes[at : at + (1 << power)]))
                    at += 1 << power
        return (
            reduce(lambda right, left: node_hash(left, right), reversed(subtrees)) if subtrees else EMPTY_ROOT
        )

    def extend(self, entries: Sequence[bytes]) -> tuple[Tree, dict[str, bytes]]:
        """The tree with more entries, and every file that it has and this one has not."""
        files: dict[str, bytes] = {}
        size, bundle, edge = self.size, list(self.entries), [list(hashes) for hashes in self.edge]
        for entry in entries:
            size += 1
            bundle.append(entry)
            if len(bundle) == WIDTH:
                files[tile_path("entries", size // WIDTH - 1)] = dump_entries(bundle)
                bundle.clear()
            _push(edge, leaf_hash(entry), size, files)
        if bundle and entries:
            files[tile_path("entries", size // WIDTH, len(bundle))] = dump_entries(bundle)
        for level, hashes in enumerate(edge):
            known = self.edge[level] if level < len(self.edge) else ()
            if hashes and tuple(hashes) != known:
                number = size >> _HEIGHT * (level + 1)
                files[tile_path(level, number, len(hashes))] = b"".join(hashes)
        return Tree(size, tuple(bundle), tuple(map(tuple, edge))), files


def _push(edge: list[list[bytes]], found: bytes, size: int, files: dict[str, bytes]) -> None:
    """Put a leaf's hash at the edge; a tile that it completes becomes a file, and its root goes a level up."""
    for level in range(len(edge) + 1):
        if level == len(edge):
            edge.append([])
        edge[level].append(found)
        if len(edge[level]) < WIDTH:
            return
        files[tile_path(level, (size >> _HEIGHT * (level + 1)) - 1)] = b"".join(edge[level])
        found = complete_root(edge[level])
        edge[level] = []


class TileReader:
    """The tree of `size` entries, read tile by tile through `fetch`. Nothing that it gives is proven."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch, self._size = fetch, size
        self._tiles: dict[tuple[int | str, int], bytes] = {}

    @property
    def nodes(self) -> Nodes:
        return self._node

    def entry(self, index: int) -> bytes:
        """The entry at `index`."""
        number = index // WIDTH
        entries = parse_entries(self._read("entries", number, min(WIDTH, self._size - number * WIDTH)))
        if index % WIDTH >= len(entries):
            raise MalformedError(Check.LOG_FORMAT, f"the bundle {number} has {len(entries)} entries only")
        return entries[index % WIDTH]

    def _node(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, _HEIGHT)
        first = index << height
        hashes = self._hashes(tile_level, first // WIDTH)
        at = first % WIDTH
        return complete_root(hashes[at : at + (1 << height)])

    def _hashes(self, level: int, number: int) -> list[bytes]:
        width = min(WIDTH, (self._size >> _HEIGHT * level) - number * WIDTH)
        data = self._read(level, number, width)
        if len(data) < width * HASH_BYTES:
            raise MalformedError(
                Check.LOG_FORMAT,
                f"tile {number} of level {level} has {len(data)} bytes, less than {width} hashes",
            )
        return [data[i : i + HASH_BYTES] for i in range(0, width * HASH_BYTES, HASH_BYTES)]

    def _read(self, level: int | str, number: int, width: int) -> bytes:
        """A tile of at least `width`: the partial one, or the complete one that took its place."""
        if (data := self._tiles.get((level, number))) is None:
            path = tile_path(level, number, width)
            data = self._fetch(path)
            if data is None and width < WIDTH:
                data = self._fetch(tile_path(level, number))
            if data is None:
                raise UnavailableError(Check.LOG_FETCH, f"the log has no {path}")
            self._tiles[level, number] = data
        return data
