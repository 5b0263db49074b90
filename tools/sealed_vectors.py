"""Write docs/vectors/sealed.json: a sealed request and its answer for each suite, and answers that must be refused.

    python -m tools.sealed_vectors

Keys, texts and random values are fixed. Sealing draws its own randomness, so a request in the file stays as long as it still
opens to the same content; everything else is made anew, and comes out the same.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.sealed import (
    SUITES,
    TICKET,
    Opened,
    SealingKeys,
    Suite,
    open_request,
    parse_envelope,
    parse_message,
    seal_request,
    seal_with_ticket,
)
from attestation.sealed_answer import AnswerSealer
from attestation.sealed_head import RequestHead, ResponseHead
from attestation.sealed_ticket import SPAN, Ticket

FILE = Path(__file__).parent.parent / "docs/vectors/sealed.json"
TIME = 1_795_262_400  # 2026-11-21T12:00:00Z
HEAD = RequestHead(
    method="POST",
    target="/v1/chat/completions",
    headers=(
        ("authorization", "Bearer sk-example"),
        ("content-type", "application/json"),
        ("attested-nonce", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"),
        ("x-latin", "größe"),
    ),
)
BODY = '{"model":"m","messages":[{"role":"user","content":"Hello!"}],"stream":true}'
ANSWER_HEAD = ResponseHead(status=200, headers=(("content-type", "text/event-stream"),))
PIECES = ('data: {"n":1}\n\n', 'data: {"n":2}\n\n', "data: [DONE]\n\n: attested e30.e30.e30\n\n")


def fixed(name: str, size: int = 32) -> bytes:
    """Bytes that anybody can make again."""
    return b"".join(sha256(f"{name}/{i}".encode()).digest() for i in range(-(-size // 32)))[:size]


def private_keys() -> SealingKeys:
    return SealingKeys(
        mlkem=MLKEM768PrivateKey.from_seed_bytes(fixed("mlkem", 64)),
        mlkem_x25519=X25519PrivateKey.from_private_bytes(fixed("mlkem_x25519")),
        x25519=X25519PrivateKey.from_private_bytes(fixed("x25519")),
        tickets=fixed("tickets"),
    )


def ticket() -> Ticket:
    """Given for this statement, in the five minutes before."""
    name = fixed("ticket") + (TIME - SPAN).to_bytes(8, "big")
    text = b"attested-inference/sealed-ticket/v1\0" + fixed("statement") + name
    return Ticket(id=name, secret=hmac.digest(fixed("tickets"), text, "sha256"))


REFUSED: dict[str, tuple[Check, Callable[[list[bytes]], list[bytes]]]] = {
    "the first chunk dropped": (Check.SEALED_ORDER, lambda c: [c[0], *c[2:]]),
    "two chunks in another order": (Check.SEALED_ORDER, lambda c: [c[0], c[2], c[1], c[3]]),
    "a chunk twice": (Check.SEALED_ORDER, lambda c: [*c[:2], *c[1:]]),
    "a byte after the last chunk": (Check.SEALED_ORDER, lambda c: [*c, b"\0"]),
    "the last chunk dropped": (Check.SEALED_TRUNCATED, lambda c: c[:-1]),
    "the second chunk marked as the last": (Check.SEALED_TRUNCATED, lambda c: [*c[:2], b"\1" + c[2][1:]]),
    "the last chunk not marked": (Check.SEALED_TRUNCATED, lambda c: [*c[:3], b"\0" + c[3][1:]]),
    "cut inside a chunk": (Check.SEALED_TRUNCATED, lambda c: [*c[:2], c[2][:100]]),
    "another random value": (Check.SEALED_OPEN, lambda c: [bytes(32), *c[1:]]),
    "a byte changed": (Check.SEALED_OPEN, lambda c: [*c[:3], c[3][:-1] + bytes([c[3][-1] ^ 1])]),
    "a mark that is none": (Check.SEALED_FORMAT, lambda c: [c[0], b"\2" + c[1][1:]]),
    "a chunk without a length": (Check.SEALED_FORMAT, lambda c: [c[0], b"\0" * 40]),
}


def case(suite: Suite, keys: SealingKeys, statement: bytes, known: str | None) -> dict[str, Any]:
    """A request, what is in it, its answer, and what that must not become."""
    request = bytes.fromhex(known) if known else _seal(suite, keys, statement)
    opened = open_request(parse_envelope(request), keys)
    sealer = AnswerSealer(opened.secret, opened.enc, random=fixed("random"))
    last = PIECES[-1]
    first = sealer.seal(PIECES[0].encode(), head=ANSWER_HEAD)
    rest = [sealer.seal(piece.encode(), last=piece is last) for piece in PIECES[1:]]
    chunks = [first[:32], first[32:], *rest]
    return {
        "suite": suite.name,
        **({"ticket": {"id": ticket().id.hex(), "secret": ticket().secret.hex()}} if suite is TICKET else {}),
        "request": request.hex(),
        "plaintext": _plaintext(opened).hex(),
        "time": TIME,
        "head": asdict(HEAD),
        "body": BODY,
        "answer": {
            "random": fixed("random").hex(),
            "head": asdict(ANSWER_HEAD),
            "pieces": PIECES,
            "chunks": [chunk.hex() for chunk in chunks[1:]],
        },
        "refused": [
            {"what": what, "check": str(check), "answer": b"".join(change(chunks)).hex()}
            for what, (check, change) in REFUSED.items()
        ],
    }


def _seal(suite: Suite, keys: SealingKeys, statement: bytes) -> bytes:
    now = datetime.fromtimestamp(TIME, UTC)
    if suite is TICKET:
        return seal_with_ticket(HEAD, BODY.encode(), ticket=ticket(), statement=statement, now=now)[0]
    public = Keys(
        receipt_ed25519=bytes(32),
        tls_spki_sha256=bytes(32),
        sealing_x_wing=keys.public_x_wing,
        sealing_x25519=keys.public_x25519,
    )
    return seal_request(HEAD, BODY.encode(), keys=public, statement=statement, now=now, suite=suite)[0]


def _plaintext(opened: Opened) -> bytes:
    return opened.secret + opened.content


def _known(keys: SealingKeys) -> dict[str, str]:
    """The requests of the file that are still what they should be, by suite."""
    found: dict[str, str] = {}
    with suppress(OSError, ValueError, LookupError):
        for old in json.loads(FILE.read_text())["cases"]:
            with suppress(AttestationError):
                envelope = parse_envelope(bytes.fromhex(old["request"]))
                message = parse_message(open_request(envelope, keys).content)
                same = (message.time, message.head, message.body) == (TIME, HEAD, BODY.encode())
                if envelope.suite is TICKET:
                    same = same and envelope.enc.startswith(ticket().id)
                if same and envelope.statement == fixed("statement"):
                    found[envelope.suite.name] = old["request"]
    return found


def vectors() -> dict[str, Any]:
    """The whole file."""
    keys, statement = private_keys(), fixed("statement")
    known = _known(keys)
    return {
        "about": "docs/protocol.md, section 7; bytes in hex; made by tools/sealed_vectors.py",
        "private": {
            "mlkem_seed": fixed("mlkem", 64).hex(),
            "mlkem_x25519": fixed("mlkem_x25519").hex(),
            "x25519": fixed("x25519").hex(),
            "tickets": fixed("tickets").hex(),
        },
        "sealing_x_wing": keys.public_x_wing.hex(),
        "sealing_x25519": keys.public_x25519.hex(),
        "statement": statement.hex(),
        "cases": [case(suite, keys, statement, known.get(suite.name)) for suite in SUITES.values()],
    }


def text() -> str:
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(text())
