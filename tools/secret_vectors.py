"""Write docs/vectors/secrets.json: an owner's secrets, sealed to an enclave, and messages that must be refused.

    python -m tools.secret_vectors

Keys, secrets and times are fixed. HPKE draws its own randomness, so a message in the file stays as long as it still opens
to the same content; everything else is made anew, and comes out the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation._b64 import b64url_encode
from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.provisioning import (
    OwnerSecrets,
    check_secrets,
    open_secrets,
    parse_sealed_secrets,
    seal_secrets,
    verify_secrets,
)
from tools.sealed_vectors import TIME, fixed, private_keys

FILE = Path(__file__).parent.parent / "docs/vectors/secrets.json"
NOW = datetime.fromtimestamp(TIME, UTC)
VALUES = {"database_url": b"postgresql://enclave:word@db/enclave\n", "key_pepper": fixed("pepper")}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What an owner says, to whom, and what is done to it on the way."""

    owner: str = "owner"
    values: dict[str, bytes] | None = None
    statement: bytes = fixed("statement")
    late: int = 0
    change: Callable[[bytes], bytes] = lambda message: message

    def message(self) -> bytes:
        sealing = private_keys()
        public = Keys(
            receipt_ed25519=bytes(32),
            tls_spki_sha256=bytes(32),
            sealing_x_wing=sealing.public_x_wing,
            sealing_x25519=sealing.public_x25519,
        )
        return seal_secrets(
            VALUES if self.values is None else self.values,
            owner=key(self.owner),
            keys=public,
            statement=self.statement,
            now=NOW - timedelta(seconds=self.late),
        )[0]


REFUSED: dict[str, tuple[Check, Said]] = {
    "signed by somebody else": (Check.SECRET_SIGNATURE, Said(owner="somebody else")),
    "a secret less": (Check.SECRET_NAME, Said(values={"key_pepper": fixed("pepper")})),
    "a secret more": (Check.SECRET_NAME, Said(values={**VALUES, "more": b""})),
    "301 seconds old": (Check.SECRET_TIME, Said(late=301)),
    "301 seconds ahead": (Check.SECRET_TIME, Said(late=-301)),
    "another statement named outside": (
        Check.SEALED_OPEN,
        Said(change=lambda message: message[:7] + bytes(32) + message[39:]),
    ),
    "a byte changed": (
        Check.SEALED_OPEN,
        Said(change=lambda message: message[:-1] + bytes([message[-1] ^ 1])),
    ),
    "another version": (Check.SECRET_FORMAT, Said(change=lambda message: b"\x02" + message[1:])),
    "another suite": (Check.SECRET_FORMAT, Said(change=lambda message: message[:2] + b"\0" + message[3:])),
    "cut": (Check.SECRET_FORMAT, Said(change=lambda message: message[:1000])),
}


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(fixed(name))


def taken(message: bytes) -> OwnerSecrets:
    """What an enclave does with a message: all of its checks, in order."""
    sealed = parse_sealed_secrets(message)
    given = verify_secrets(open_secrets(sealed, private_keys()), key("owner").public_key())
    check_secrets(given, statement=fixed("statement"), names=VALUES, now=NOW)
    return given


def outcome(message: bytes) -> str:
    """The digest, or the check that refuses the message."""
    try:
        return taken(message).digest().hex()
    except AttestationError as error:
        return str(error.check)


def _known() -> dict[str, bytes]:
    """The messages of the file, by what they are."""
    with suppress(OSError, ValueError, LookupError):
        old = json.loads(FILE.read_text())
        refused = {each["what"]: bytes.fromhex(each["message"]) for each in old["refused"]}
        return {"": bytes.fromhex(old["message"]), **refused}
    return {}


def _kept(message: bytes | None, said: Said, expected: str) -> bytes:
    """The message of the file when it is still that, else a new one."""
    if message is not None and outcome(message) == expected and _same(message, said):
        return message
    return said.change(said.message())


def _same(message: bytes, said: Said) -> bool:
    """The token inside, where it opens, is the one that would be made now."""
    with suppress(AttestationError):
        new = replace(said, change=lambda made: made).message()
        tokens = [open_secrets(parse_sealed_secrets(each), private_keys()) for each in (message, new)]
        return tokens[0] == tokens[1]
    return True


def vectors() -> dict[str, Any]:
    """The whole file."""
    known = _known()
    given = taken(Said().message())
    message = _kept(known.get(""), Said(), given.digest().hex())
    refused = [
        {"what": what, "check": str(check), "message": _kept(known.get(what), said, str(check)).hex()}
        for what, (check, said) in REFUSED.items()
    ]
    return {
        "about": "docs/protocol.md, section 13; bytes in hex, secrets in base64url; the enclave's private keys are those of "
        "sealed.json; made by tools/secret_vectors.py",
        "owner_private": fixed("owner").hex(),
        "owner_public": key("owner").public_key().public_bytes_raw().hex(),
        "statement": fixed("statement").hex(),
        "time": TIME,
        "secrets": {name: b64url_encode(value) for name, value in VALUES.items()},
        "salt": given.salt.hex(),
        "digest": given.digest().hex(),
        "token": open_secrets(parse_sealed_secrets(message), private_keys()).decode(),
        "message": message.hex(),
        "refused": refused,
    }


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
