"""Checkpoints (c2sp.org/tlog-checkpoint): what a log says it holds, signed: its origin, its size and its root."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.tlog.merkle import EMPTY_ROOT, HASH_BYTES, MAX_SIZE
from attestation.tlog.note import (
    Note,
    VerifierKey,
    decode_base64,
    dump_note,
    parse_note,
    sign_text,
    verify_note,
)

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of one log's tree. Authentic only when it comes from `verify_checkpoint`."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        lines = [self.origin, str(self.size), b64encode(self.root).decode(), *self.extensions]
        return "".join(f"{line}\n" for line in lines)


def parse_number(text: str, what: str) -> int:
    """ASCII decimal without leading zeros, below 2**62."""
    if not _DECIMAL.fullmatch(text) or int(text) >= MAX_SIZE:
        raise MalformedError(Check.LOG_FORMAT, f"{what} is no decimal number of a log: {text[:24]!r}")
    return int(text)


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint's text, which is a note's. Judges nothing."""
    if not text.endswith("\n"):
        raise MalformedError(Check.LOG_FORMAT, "a checkpoint ends with a newline")
    lines = text[:-1].split("\n")
    if len(lines) < 3 or "" in lines:
        raise MalformedError(Check.LOG_FORMAT, "a checkpoint has at least three lines, and none is empty")
    size, root = parse_number(lines[1], "the size"), decode_base64(lines[2], "the root")
    if len(root) != HASH_BYTES or (size == 0 and root != EMPTY_ROOT):
        raise MalformedError(Check.LOG_FORMAT, f"the root is no root of a tree of {size}")
    return Checkpoint(origin=lines[0], size=size, root=root, extensions=tuple(lines[3:]))


def sign_checkpoint(checkpoint: Checkpoint, private: Ed25519PrivateKey) -> bytes:
    """The signed note; the key's name is the origin."""
    text = checkpoint.text
    return dump_note(Note(text=text, signatures=(sign_text(text, checkpoint.origin, private),)))


def verify_checkpoint(data: bytes, key: VerifierKey, witnesses: Sequence[VerifierKey] = ()) -> Checkpoint:
    """The checkpoint in a signed note, of the log that is named and signed by `key`, and cosigned by every witness."""
    note = parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != key.name:
        raise VerificationError(
            Check.LOG_ORIGIN,
            f"expected a checkpoint of the log {key.name}, found one of {checkpoint.origin}",
            advice="This is another log; a gateway that was restarted has a new one",
        )
    verify_note(note, key)
    for witness in witnesses:
        verify_note(note, witness, Check.LOG_WITNESS)
    return checkpoint
