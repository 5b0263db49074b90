"""What the tests of encrypted packs have in common: a key, and how a pack is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from enclave_server.model.manifest import ModelError, ModelProblem

KEY = b"k" * 32
ID = "me/model@1"
CANARY = b"a weight that must be seen nowhere"


def problem(work: Callable[[], object]) -> ModelProblem:
    with pytest.raises(ModelError) as caught:
        work()
    assert caught.value.advice
    return caught.value.problem


def flipped(at: int) -> Callable[[bytearray], None]:
    def flip(data: bytearray) -> None:
        data[at] ^= 1

    return flip
