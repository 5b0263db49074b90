"""What a log of receipts has in it: nothing but hashes (docs/protocol.md §11).

The first entry of a gateway's own log commits to the checkpoint with which the log before it ended; every other entry is
the SHA-256 of one receipt.
"""

from __future__ import annotations

from hashlib import sha256

from attestation.binding import Statement
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.tlog.checkpoint import Checkpoint, verify_checkpoint
from attestation.tlog.merkle import leaf_hash, verify_inclusion
from attestation.tlog.note import VerifierKey
from attestation.tlog.proof import LogProof, parse_proof

_PREDECESSOR = b"attested-inference/log-predecessor/v1\x00"
_ORIGIN = "attested-inference/log/"


def receipt_entry(token: str) -> bytes:
    """The entry of a receipt: the digest of its JWS, as it was received."""
    return sha256(token.encode()).digest()


def predecessor_entry(checkpoint: bytes) -> bytes:
    """The first entry of a log that follows the one with this last checkpoint; of the very first log, with none."""
    return sha256(_PREDECESSOR + checkpoint).digest()


def log_origin(key: bytes) -> str:
    """The origin of a gateway's own log: there is one log for each key."""
    return _ORIGIN + key.hex()


def own_key(origin: str) -> VerifierKey | None:
    """The key of a gateway's own log, which stands in its origin; None for any other origin."""
    key = origin.removeprefix(_ORIGIN)
    if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        return None
    found = VerifierKey(name=origin, key=bytes.fromhex(key))
    return found if log_origin(found.key) == origin else None


def log_key(statement: Statement) -> VerifierKey:
    """The key of the log that an enclave's receipts are in, by its statement."""
    key = statement.keys.log_ed25519
    if key is None:
        raise VerificationError(
            Check.LOG_MISSING,
            "the statement names no log",
            advice="This enclave keeps no log of its receipts; ask its operator to set log_dir",
        )
    return VerifierKey(name=statement.log_origin or log_origin(key), key=key)


def check_logged(proof: bytes, token: str, key: VerifierKey) -> tuple[LogProof, Checkpoint]:
    """The receipt in `token` is in the log of `key`, as of the proof's checkpoint."""
    parsed = parse_proof(proof)
    checkpoint = verify_checkpoint(parsed.checkpoint, key)
    verify_inclusion(
        leaf_hash(receipt_entry(token)), parsed.index, checkpoint.size, parsed.hashes, checkpoint.root
    )
    return parsed, checkpoint
