"""docs/vectors/parts.json: made by its script, and what docs/protocol.md says, spelt out with nothing but hashes."""

from __future__ import annotations

import json
from hashlib import sha256
from hmac import digest as hmac
from typing import Any

import pytest

from attestation.parts import RunningParts
from tools.part_vectors import FILE, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def claim(messages: list[bytes], choices: list[bytes]) -> str:
    """`parts`, from the digests of all parts."""
    whole = b"attested-inference/parts/v1\0"
    for digests in (messages, choices):
        whole += len(digests).to_bytes(4, "big") + b"".join(digests)
    return sha256(whole).hexdigest()


def digest_of(part: dict[str, str]) -> bytes:
    if "salt" not in part:
        return bytes.fromhex(part["digest"])
    return sha256(bytes.fromhex(part["salt"]) + part["value"].encode()).digest()


def test_the_file_is_what_the_script_makes() -> None:
    """Nothing in it is written by hand."""
    assert FILE.read_text() == text()


@pytest.mark.parametrize("chat", VECTORS["chats"], ids=lambda chat: chat["name"])
def test_chats(chat: dict[str, Any]) -> None:
    """Salts, digests and the claim; and the gateway's own reading of the same bytes."""
    pseudorandom = hmac(bytes(32), bytes.fromhex(chat["nonce"]), "sha256")
    for kind in ("message", "choice"):
        for index, part in enumerate(chat[f"{kind}s"]):
            info = f"attested-inference/part/v1\0{kind}/{index}\1".encode()
            assert hmac(pseudorandom, info, "sha256").hex() == part["salt"]
            assert digest_of(part).hex() == part["digest"]
            assert kind == "choice" or part["value"] in chat["request"]
    assert claim(*([digest_of(p) for p in chat[kind]] for kind in ("messages", "choices"))) == chat["parts"]
    running = RunningParts(bytes.fromhex(chat["nonce"]), chat["request"].encode())
    running.answer(chat["response"].encode())
    found = running.digest()
    assert found is not None
    assert found.hex() == chat["parts"]


@pytest.mark.parametrize("one", VECTORS["disclosures"], ids=lambda one: one["name"])
def test_disclosures(one: dict[str, Any]) -> None:
    """What is shown gives the claim, or does not."""
    found = claim(*([digest_of(part) for part in one[kind]] for kind in ("messages", "choices")))
    assert (found == one["parts"]) is one["holds"]
