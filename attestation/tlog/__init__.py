"""A transparency log of receipts, as other logs are: RFC 6962 trees, C2SP signed notes, checkpoints, tiles and proofs.

Pure: nothing here reads a clock, a disk or a network. `merkle` hashes and proves, `note` signs, `checkpoint` is a signed
tree head, `tiles` says where hashes lie, `proof` is one entry's proof as a file, and `receipts` says what the entries are.
"""

from attestation.tlog.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint, verify_checkpoint
from attestation.tlog.note import VerifierKey, parse_verifier_key
from attestation.tlog.proof import LogProof, dump_proof, parse_proof
from attestation.tlog.receipts import (
    check_logged,
    log_key,
    log_origin,
    own_key,
    predecessor_entry,
    receipt_entry,
)
from attestation.tlog.tiles import Fetch, TileReader, Tree

__all__ = [
    "Checkpoint",
    "Fetch",
    "LogProof",
    "TileReader",
    "Tree",
    "VerifierKey",
    "check_logged",
    "dump_proof",
    "log_key",
    "log_origin",
    "own_key",
    "parse_checkpoint",
    "parse_proof",
    "parse_verifier_key",
    "predecessor_entry",
    "receipt_entry",
    "sign_checkpoint",
    "verify_checkpoint",
]
