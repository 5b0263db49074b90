"""docs/vectors/secrets.json: made by its script, and what docs/protocol.md §13 says, spelt out with a library's primitives."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tools.secret_vectors import FILE, REFUSED, outcome, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def decoded(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_the_script_makes_the_file() -> None:
    """Run again, it changes nothing."""
    assert text() == FILE.read_text()
    assert [each["what"] for each in VECTORS["refused"]] == list(REFUSED)


def test_the_token_is_the_owners() -> None:
    """A JWS by the owner's key, over exactly these claims."""
    header, payload, signature = VECTORS["token"].split(".")
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(VECTORS["owner_public"]))
    public.verify(decoded(signature), f"{header}.{payload}".encode())
    claims = json.loads(decoded(payload))
    assert json.loads(decoded(header)) == {"alg": "EdDSA", "typ": "attested-secrets+jwt"}
    assert claims["secrets"] == VECTORS["secrets"]
    assert claims["statement"] == VECTORS["statement"]
    assert decoded(claims["salt"]).hex() == VECTORS["salt"]


def test_salt_and_digest() -> None:
    """As the protocol has them, made with the owner's private key and hashes alone."""
    owner = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS["owner_private"]))
    canonical = json.dumps(VECTORS["secrets"], separators=(",", ":"), sort_keys=True).encode()
    salt = sha256(owner.sign(b"attested-inference/secrets-salt/v1\0" + sha256(canonical).digest())).digest()
    assert salt.hex() == VECTORS["salt"]
    assert sha256(b"attested-inference/secrets/v1\0" + salt + canonical).hexdigest() == VECTORS["digest"]


def test_the_message_is_taken() -> None:
    """It opens, and shows this digest."""
    assert outcome(bytes.fromhex(VECTORS["message"])) == VECTORS["digest"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["what"])
def test_refused(case: dict[str, str]) -> None:
    """Each by the check that the file names."""
    assert outcome(bytes.fromhex(case["message"])) == case["check"]
