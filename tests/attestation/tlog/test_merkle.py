"""Trees, proofs and tiles against published vectors and against a tree that is made naively."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError
from attestation.tlog.merkle import (
    EMPTY_ROOT,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)
from attestation.tlog.tiles import TileReader, Tree, dump_entries, parse_entries, tile_path

# the leaves and roots that implementations of RFC 6962 share
LEAVES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
B = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
C = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
D = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
E = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
F = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
ENTRIES = [sha256(b"%d" % i).digest() for i in range(70_000)]
SIZES = [*range(1, 68), 127, 128, 129, 200, 255, 256, 257, 258, 299, 300]


def naive(entries: Sequence[bytes]) -> bytes:
    """MTH of RFC 6962 §2.1, word for word."""
    if not entries:
        return EMPTY_ROOT
    if len(entries) == 1:
        return leaf_hash(entries[0])
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return node_hash(naive(entries[:k]), naive(entries[k:]))


def reader(entries: Sequence[bytes]) -> TileReader:
    return TileReader(Tree().extend(entries)[1].get, len(entries))


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    """The root of the first leaves is the published one."""
    assert Tree().extend(LEAVES[:size])[0].root.hex() == ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 2, [A]),
        (1, 2, [ROOTS[1]]),
        (2, 3, [ROOTS[2]]),
        (1, 5, [ROOTS[1], B, D]),
        (0, 8, [A, B, C]),
        (5, 8, [D, E, ROOTS[4]]),
    ],
)
def test_known_inclusion_proofs(index: int, size: int, proof: list[str]) -> None:
    """The proofs are the published ones."""
    made = inclusion_proof(index, size, reader(LEAVES[:size]).nodes)
    assert [found.hex() for found in made] == proof
    verify_inclusion(leaf_hash(LEAVES[index]), index, size, made, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(
    ("old", "new", "proof"), [(1, 1, []), (1, 8, [A, B, C]), (2, 5, [B, D]), (6, 8, [F, E, ROOTS[4]])]
)
def test_known_consistency_proofs(old: int, new: int, proof: list[str]) -> None:
    """The proofs are the published ones."""
    made = consistency_proof(old, new, reader(LEAVES[:new]).nodes)
    assert [found.hex() for found in made] == proof
    verify_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), made)


@pytest.mark.parametrize("size", SIZES)
def test_every_proof_of_every_size_holds(size: int) -> None:
    """Grown in two steps, a tree has the naive root; each entry is in it, and each smaller tree is its beginning."""
    entries = ENTRIES[:size]
    half, files = Tree().extend(entries[: size // 2])
    tree, more = half.extend(entries[size // 2 :])
    assert tree.root == naive(entries)
    read = TileReader((files | more).get, size)
    for index in range(size):
        proof = inclusion_proof(index, size, read.nodes)
        verify_inclusion(leaf_hash(entries[index]), index, size, proof, tree.root)
        assert read.entry(index) == entries[index]
    roots = [naive(entries[:old]) for old in range(0, size + 1, 1 + size // 40)]
    for old, root in zip(range(0, size + 1, 1 + size // 40), roots, strict=True):
        verify_consistency(old, root, size, tree.root, consistency_proof(old, size, read.nodes))


@given(st.data())
def test_no_other_entry_index_size_or_hash_holds(data: st.DataObject) -> None:
    """Whatever is changed in an inclusion proof, it does not lead to the root."""
    size = data.draw(st.integers(2, 300))
    index = data.draw(st.integers(0, size - 1))
    tree, files = Tree().extend(ENTRIES[:size])
    proof = inclusion_proof(index, size, TileReader(files.get, size).nodes)
    leaf, other = leaf_hash(ENTRIES[index]), data.draw(st.integers(0, size - 1).filter(lambda i: i != index))
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = [bytes([h[0] ^ 1]) + h[1:] if i == at else h for i, h in enumerate(proof)]
    wrong = [
        (leaf_hash(ENTRIES[other]), index, size, proof, tree.root),
        (leaf, other, size, proof, tree.root),
        (leaf, index, size, flipped, tree.root),
        (leaf, index, size, proof[:-1], tree.root),
        (leaf, index, size, [*proof, proof[0]], tree.root),
        (leaf, index, size, proof, EMPTY_ROOT),
        (leaf, size, size, proof, tree.root),
        (leaf, -1, size, proof, tree.root),
    ]
    for case in wrong:
        with pytest.raises(VerificationError) as error:
            verify_inclusion(*case)
        assert error.value.check is Check.LOG_INCLUSION


@given(st.data())
def test_no_other_history_is_consistent(data: st.DataObject) -> None:
    """A changed entry, a changed hash, a hash too many or too few, and a smaller tree are refused."""
    new = data.draw(st.integers(2, 300))
    old = data.draw(st.integers(1, new - 1))
    tree, files = Tree().extend(ENTRIES[:new])
    before = Tree().extend(ENTRIES[:old])[0].root
    proof = consistency_proof(old, new, TileReader(files.get, new).nodes)
    changed = data.draw(st.integers(0, old - 1))
    other = [*ENTRIES[:changed], b"another", *ENTRIES[changed + 1 : new]]
    forked, forks = Tree().extend(other)
    at = data.draw(st.integers(0, len(proof) - 1))
    flipped = [bytes([h[0] ^ 1]) + h[1:] if i == at else h for i, h in enumerate(proof)]
    wrong = [
        (old, before, new, forked.root, consistency_proof(old, new, TileReader(forks.get, new).nodes)),
        (old, before, new, tree.root, flipped),
        (old, before, new, tree.root, proof[:-1]),
        (old, before, new, tree.root, [*proof, proof[0]]),
        (old, before, new, tree.root, []),
        (new, tree.root, old, before, proof),
        (new, tree.root, new, forked.root, []),
        (new, tree.root, new, tree.root, proof),
        (0, before, new, tree.root, []),
    ]
    for case in wrong:
        with pytest.raises(VerificationError) as error:
            verify_consistency(*case)
        assert error.value.check is Check.LOG_CONSISTENCY


def test_what_no_tree_has_is_a_mistake_of_the_caller() -> None:
    """Proofs are made for entries and sizes that exist."""
    nodes = reader(LEAVES).nodes
    with pytest.raises(ValueError, match="no entry"):
        inclusion_proof(8, 8, nodes)
    with pytest.raises(ValueError, match="grow"):
        consistency_proof(9, 8, nodes)


def test_tiles_are_those_of_the_specification() -> None:
    """70,000 entries: 273 full tiles and one of 112, one full tile above with one of 17, and one of 1 on top."""
    tree, files = Tree().extend(ENTRIES)
    assert tree.root == naive(ENTRIES)
    full = [path for path in files if path.startswith("tile/0/") and ".p/" not in path]
    assert len(full) == 273
    assert all(len(files[path]) == 8192 for path in full)
    partial = {
        path: len(data) // 32 for path, data in files.items() if ".p/" in path and "entries" not in path
    }
    assert partial == {"tile/0/273.p/112": 112, "tile/1/001.p/17": 17, "tile/2/000.p/1": 1}
    assert "tile/1/000" in files
    assert parse_entries(files["tile/entries/273.p/112"]) == ENTRIES[-112:]
    proof = inclusion_proof(69_999, 70_000, TileReader(files.get, 70_000).nodes)
    verify_inclusion(leaf_hash(ENTRIES[-1]), 69_999, 70_000, proof, tree.root)


def test_tile_paths() -> None:
    """Groups of three digits, all but the last after an x."""
    assert tile_path(0, 1_234_067) == "tile/0/x001/x234/067"
    assert tile_path(2, 5, 17) == "tile/2/005.p/17"
    assert tile_path("entries", 1000) == "tile/entries/x001/000"


def test_a_complete_tile_serves_in_place_of_a_partial_one() -> None:
    """A log may drop a partial tile when the complete one is there."""
    files = Tree().extend(ENTRIES[:256])[1]
    read = TileReader(files.get, 100)
    proof = inclusion_proof(99, 100, read.nodes)
    verify_inclusion(leaf_hash(ENTRIES[99]), 99, 100, proof, naive(ENTRIES[:100]))
    assert read.entry(99) == ENTRIES[99]


def test_tiles_that_are_missing_or_short() -> None:
    """What is not there leaves the question open, and what is too short is no tile."""
    with pytest.raises(UnavailableError) as missing:
        inclusion_proof(1, 5, TileReader(lambda _: None, 5).nodes)
    assert missing.value.check is Check.LOG_FETCH
    with pytest.raises(MalformedError):
        inclusion_proof(1, 5, TileReader(lambda _: bytes(31), 5).nodes)
    with pytest.raises(MalformedError):
        TileReader(lambda _: dump_entries([b"one"]), 5).entry(2)


@given(st.binary(max_size=2000))
def test_any_bytes_are_entries_or_malformed(data: bytes) -> None:
    """A bundle's parser gives the entries that make the same bytes, or MalformedError."""
    with suppress(MalformedError):
        assert dump_entries(parse_entries(data)) == data
