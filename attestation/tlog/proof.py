"""One entry's proof as a file (c2sp.org/tlog-proof@v1): its index, its inclusion proof, and the checkpoint it leads to."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.tlog.checkpoint import parse_number
from attestation.tlog.merkle import HASH_BYTES
from attestation.tlog.note import MAX_NOTE_BYTES, decode_base64

MEDIA_TYPE = "text/plain; charset=utf-8"
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 16 * 1024
MAX_HASHES = 62
_MAGIC, _EXTRA, _INDEX = "c2sp.org/tlog-proof@v1", "extra ", "index "


@dataclass(frozen=True, slots=True, kw_only=True)
class LogProof:
    """What shows that an entry is in a log. Nothing of it is verified; `extra` is not even signed."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes  # the signed note, verbatim
    extra: bytes | None = None


def dump_proof(proof: LogProof) -> bytes:
    """The file that `parse_proof` reads."""
    lines = [_MAGIC]
    if proof.extra is not None:
        lines.append(_EXTRA + b64encode(proof.extra).decode())
    lines += [f"{_INDEX}{proof.index}", *(b64encode(found).decode() for found in proof.hashes), "", ""]
    return "\n".join(lines).encode() + proof.checkpoint


def parse_proof(data: bytes) -> LogProof:
    """Read a proof. Judges nothing: the checkpoint in it is read when it is verified."""
    if len(data) > MAX_PROOF_BYTES:
        raise _malformed(f"a proof of {len(data)} bytes, the limit is {MAX_PROOF_BYTES}")
    head, blank, checkpoint = data.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as exc:
        raise _malformed("a proof is ASCII up to its checkpoint") from exc
    if lines.pop(0) != _MAGIC or not blank or not checkpoint:
        raise _malformed(f"a proof begins with {_MAGIC}, and has a checkpoint after an empty line")
    extra = None
    if lines and lines[0].startswith(_EXTRA):
        extra = decode_base64(lines.pop(0).removeprefix(_EXTRA), "the extra data")
    if not lines or not lines[0].startswith(_INDEX):
        raise _malformed("a proof names the index of its entry")
    index = parse_number(lines.pop(0).removeprefix(_INDEX), "the index")
    hashes = tuple(decode_base64(line, "a hash") for line in lines)
    if len(hashes) > MAX_HASHES or any(len(found) != HASH_BYTES for found in hashes):
        raise _malformed(f"a proof has at most {MAX_HASHES} hashes of {HASH_BYTES} bytes")
    return LogProof(index=index, hashes=hashes, checkpoint=checkpoint, extra=extra)


def _malformed(detail: str) -> MalformedError:
    return MalformedError(Check.LOG_FORMAT, detail)
