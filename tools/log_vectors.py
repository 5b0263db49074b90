"""Write docs/vectors/log.json: a small log of receipts, proofs that hold, and what every verifier must refuse.

    python -m tools.log_vectors

Keys and receipts are fixed, and Ed25519 signs the same text in the same way: the file comes out the same each time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.checks import Check
from attestation.tlog import (
    Checkpoint,
    LogProof,
    TileReader,
    Tree,
    VerifierKey,
    dump_proof,
    log_origin,
    predecessor_entry,
    receipt_entry,
    sign_checkpoint,
)
from attestation.tlog.merkle import consistency_proof, inclusion_proof
from tools.receipt_vectors import fixed

FILE = Path(__file__).parent.parent / "docs/vectors/log.json"
LOG, OTHER = (Ed25519PrivateKey.from_private_bytes(fixed(name)) for name in ("log", "another log"))
SIZE = 7
RECEIPTS = [f"header.receipt{i}.signature" for i in range(1, SIZE)]


def checkpoint(private: Ed25519PrivateKey, entries: list[bytes]) -> str:
    key = private.public_key().public_bytes_raw()
    tree = Tree().extend(entries)[0]
    return sign_checkpoint(
        Checkpoint(origin=log_origin(key), size=tree.size, root=tree.root), private
    ).decode()


def vectors() -> dict[str, Any]:
    """The whole file."""
    ended = checkpoint(OTHER, [predecessor_entry(b""), receipt_entry("header.earlier.signature")])
    entries = [predecessor_entry(ended.encode()), *map(receipt_entry, RECEIPTS)]
    files, key = Tree().extend(entries)[1], LOG.public_key().public_bytes_raw()
    nodes = TileReader(files.get, SIZE).nodes
    heads = {size: checkpoint(LOG, entries[:size]) for size in (1, 4, SIZE)}
    proofs = [
        LogProof(index=i, hashes=tuple(inclusion_proof(i, SIZE, nodes)), checkpoint=heads[SIZE].encode())
        for i in range(SIZE)
    ]
    good = proofs[3]
    forged = checkpoint(OTHER, entries).replace(
        log_origin(OTHER.public_key().public_bytes_raw()), log_origin(key)
    )
    refused: list[tuple[str, Check, LogProof]] = [
        ("another index", Check.LOG_INCLUSION, replace(good, index=4)),
        ("the proof of another receipt", Check.LOG_INCLUSION, proofs[4]),
        ("a hash too few", Check.LOG_INCLUSION, replace(good, hashes=good.hashes[1:])),
        ("a hash too many", Check.LOG_INCLUSION, replace(good, hashes=(*good.hashes, bytes(32)))),
        ("a smaller tree", Check.LOG_INCLUSION, replace(good, checkpoint=heads[4].encode())),
        ("a log of another key", Check.LOG_ORIGIN, replace(good, checkpoint=ended.encode())),
        ("signed by another key", Check.LOG_CHECKPOINT, replace(good, checkpoint=forged.encode())),
        (
            "another size under the signature",
            Check.LOG_CHECKPOINT,
            replace(good, checkpoint=heads[SIZE].replace("\n7\n", "\n8\n").encode()),
        ),
        ("no signature", Check.LOG_FORMAT, replace(good, checkpoint=heads[SIZE].split("—")[0].encode())),
    ]
    return {
        "about": "docs/protocol.md, section 11; hex, and files as text; made by tools/log_vectors.py",
        "log_ed25519": key.hex(),
        "verifier_key": str(VerifierKey(name=log_origin(key), key=key)),
        "previous": ended,
        "receipts": RECEIPTS,
        "entries": [entry.hex() for entry in entries],
        "checkpoints": list(heads.values()),
        "tiles": {path: data.hex() for path, data in sorted(files.items())},
        "consistency": [
            {"old": old, "new": SIZE, "proof": [h.hex() for h in consistency_proof(old, SIZE, nodes)]}
            for old in (1, 4, SIZE)
        ],
        "accepted": [
            {"receipt": receipt, "proof": dump_proof(proof).decode()}
            for receipt, proof in zip(RECEIPTS, proofs[1:], strict=True)
        ],
        "refused": [
            {"name": name, "check": str(check), "receipt": RECEIPTS[2], "proof": dump_proof(proof).decode()}
            for name, check, proof in refused
        ],
    }


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
