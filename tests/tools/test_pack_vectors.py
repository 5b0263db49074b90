"""docs/vectors/pack.json: made by its script, and what docs/models.md says, spelt out with a library's primitives."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tools.pack_vectors import FILE, REFUSED, outcome, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text())
PACK, KEY = bytes.fromhex(VECTORS["pack"]), bytes.fromhex(VECTORS["key"])


def test_the_script_makes_the_file() -> None:
    """Run again, it changes nothing."""
    assert text() == FILE.read_text()
    assert [each["what"] for each in VECTORS["refused"]] == list(REFUSED)


def test_it_opens_as_the_page_says() -> None:
    """Header, index and files, each under a key of its own."""
    assert PACK[:16] == b"attested-pack/1\n"
    header, salt, length = PACK[:56], PACK[16:48], int.from_bytes(PACK[48:56], "big")

    def opened(label: bytes, at: int, size: int) -> bytes:
        if not size:
            return b""
        info = b"attested-inference/model-pack/v1\0" + label
        key = HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(KEY)
        return AESGCM(key).decrypt(bytes(12), PACK[at : at + size + 16], header)

    index = opened(b"index", 56, length)
    found, at = {}, 56 + length + 16
    for file in json.loads(index)["files"]:
        content = opened(b"file\0" + file["path"].encode(), at, file["size"])
        assert sha256(content).hexdigest() == file["sha256"]
        found[file["path"]] = content.hex()
        at += file["size"] + 16 * bool(file["size"])
    assert (found, at) == (VECTORS["files"], len(PACK))
    assert outcome(PACK) == VECTORS["model_digest"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["what"])
def test_refused(case: dict[str, str]) -> None:
    """Each by the name that the file gives."""
    assert outcome(bytes.fromhex(case["pack"])) == case["error"]


def test_another_key() -> None:
    """It does not open."""
    assert outcome(PACK, bytes(32)) == "model.pack_key"
