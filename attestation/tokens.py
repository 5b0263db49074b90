"""A digest over the token ids of one answer, so that an auditor can run it again and know what was answered.

    tokens = SHA-256( "attested-inference/tokens/v1" ‖ 0x00 ‖ nonce ‖ choice 0 ‖ choice 1 ‖ … )
    choice = SHA-256( prompt ids ) ‖ SHA-256( output ids )        each id as 4 bytes, big-endian

The nonce is that of the receipt's other digests: the ids of a guessable prompt are as guessable as its text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

REPLAY_HEADER = "Attested-Replay"
ID_LIMIT = 2**32
_DOMAIN = b"attested-inference/tokens/v1\0"


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as they are hashed, each below `ID_LIMIT`."""
    return struct.pack(f">{len(ids)}I", *ids)


class RunningTokens:
    """The digest over ids that arrive in pieces, the choices in any order. It keeps hashes, not ids."""

    __slots__ = ("_outputs", "_prompts", "_shared")

    def __init__(self) -> None:
        self._shared: bytes | None = None  # digest of the prompt that all choices have
        self._prompts: dict[int, bytes] = {}  # of those that have one of their own
        self._outputs: dict[int, Any] = {}  # running SHA-256

    def prompt(self, ids: Sequence[int], choice: int | None = None) -> None:
        """The whole prompt, of one choice or of all."""
        digest = sha256(pack_ids(ids)).digest()
        if choice is None:
            self._shared = digest
        else:
            self._prompts[choice] = digest

    def output(self, choice: int, ids: Sequence[int]) -> None:
        """The next ids of a choice."""
        if choice not in self._outputs:
            self._outputs[choice] = sha256()
        self._outputs[choice].update(pack_ids(ids))

    def digest(self, nonce: bytes) -> bytes | None:
        """None unless every choice from 0 on has its prompt and its output."""
        whole = sha256(_DOMAIN + nonce)
        for choice in range(len(self._outputs)):
            prompt, output = self._prompts.get(choice, self._shared), self._outputs.get(choice)
            if prompt is None or output is None:
                return None
            whole.update(prompt + output.digest())
        return whole.digest() if self._outputs else None
