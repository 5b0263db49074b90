"""RFC 6962 §2.1: hashes of a Merkle tree, and proofs that it has an entry, or grew out of a smaller one.

Proofs are made from the hashes of complete subtrees, however they are kept, and verified with nothing but the roots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from hmac import compare_digest

from attestation.checks import Check
from attestation.errors import VerificationError

HASH_BYTES = 32
MAX_SIZE = 2**62
EMPTY_ROOT = sha256(b"").digest()
#: The hash of the complete subtree of 2**level leaves that begins at leaf index * 2**level.
Nodes = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def complete_root(hashes: Sequence[bytes]) -> bytes:
    """The root over a power of two of hashes."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]


def subtree_root(start: int, end: int, nodes: Nodes) -> bytes:
    """MTH(D[start:end]), for a range that a proof can name."""
    if start == end:
        return EMPTY_ROOT
    size = end - start
    if size & (size - 1) == 0:
        return nodes(size.bit_length() - 1, start // size)
    middle = start + _split(size)
    return node_hash(subtree_root(start, middle, nodes), subtree_root(middle, end, nodes))


def inclusion_proof(index: int, size: int, nodes: Nodes) -> list[bytes]:
    """PATH(index, D[size]), from the leaf's sibling up."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} has no entry {index}")
    start, end, proof = 0, size, []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(subtree_root(middle, end, nodes))
            end = middle
        else:
            proof.append(subtree_root(start, middle, nodes))
            start = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, nodes: Nodes) -> list[bytes]:
    """PROOF(old, D[new]); empty when there is nothing to prove."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} did not grow out of one of {old}")
    if old in {0, new}:
        return []
    start, end, proof = 0, new, []
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(subtree_root(middle, end, nodes))
            end = middle
        else:
            proof.append(subtree_root(start, middle, nodes))
            start = middle
    if start:  # else the old root itself, which the verifier has
        proof.append(subtree_root(start, end, nodes))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """The tree of `size` with `root` has `leaf` (a leaf's hash) at `index` (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        raise _no_inclusion(f"a tree of {size} entries has no entry {index}")
    found = leaf
    try:
        for sibling, left in _climb(index, size - 1, proof):
            found = node_hash(sibling, found) if left else node_hash(found, sibling)
    except ValueError as exc:
        raise _no_inclusion(
            f"{len(proof)} hashes do not lead from entry {index} of {size} to the root"
        ) from exc
    if not compare_digest(found, root):
        raise _no_inclusion(
            f"entry {index} of {size} leads to the root {found.hex()[:16]}…, not to {root.hex()[:16]}…"
        )


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """The tree of `new` entries begins with all of the tree of `old`, in their order (RFC 9162 §2.1.4.2)."""
    if not 0 <= old <= new:
        raise _no_consistency(f"the log had {old} entries, and has {new} now: it was rolled back")
    if old in {0, new}:
        known = EMPTY_ROOT if old == 0 else new_root
        if proof or not compare_digest(old_root, known):
            raise _no_consistency(f"two trees of {old} entries have two roots")
        return
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first, *rest = [old_root, *proof] if node == 0 else [*proof] or [b""]
    before = after = first
    try:
        for sibling, left in _climb(node, last, rest):
            before = node_hash(sibling, before) if left else before
            after = node_hash(sibling, after) if left else node_hash(after, sibling)
    except ValueError as exc:
        raise _no_consistency(f"{len(proof)} hashes do not lead from {old} entries to {new}") from exc
    if not (compare_digest(before, old_root) and compare_digest(after, new_root)):
        raise _no_consistency(
            f"the tree of {new} entries does not begin with the {old} that were seen before"
        )


def _climb(node: int, last: int, proof: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each hash of a proof, from the leaf up, and whether it is a left sibling. ValueError when there are too many or too few."""
    for sibling in proof:
        if last == 0:
            raise ValueError("too many")
        left = bool(node & 1) or node == last
        yield sibling, left
        while left and node and not node & 1:
            node, last = node >> 1, last >> 1
        node, last = node >> 1, last >> 1
    if last:
        raise ValueError("too few")


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _no_inclusion(detail: str) -> VerificationError:
    return VerificationError(
        Check.LOG_INCLUSION,
        detail,
        advice="The proof is of another receipt or another log; ask for it again, and treat the receipt as not logged",
    )


def _no_consistency(detail: str) -> VerificationError:
    return VerificationError(
        Check.LOG_CONSISTENCY,
        detail,
        advice="The log shows two histories: keep both checkpoints, they are the proof of it",
    )
