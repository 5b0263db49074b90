"""docs/vectors/sealed.json: what another implementation is held to holds for this one, and is made by its script."""

from __future__ import annotations

import hmac
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.errors import AttestationError
from attestation.sealed import SUITES, Opened, SealingKeys, open_request, parse_envelope, parse_message
from attestation.sealed_answer import AnswerOpener, AnswerSealer
from attestation.sealed_head import ResponseHead
from tools.sealed_vectors import FILE, REFUSED, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text())
CASES = pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["suite"])


def keys() -> SealingKeys:
    private = {name: bytes.fromhex(value) for name, value in VECTORS["private"].items()}
    return SealingKeys(
        mlkem=MLKEM768PrivateKey.from_seed_bytes(private["mlkem_seed"]),
        mlkem_x25519=X25519PrivateKey.from_private_bytes(private["mlkem_x25519"]),
        x25519=X25519PrivateKey.from_private_bytes(private["x25519"]),
        tickets=private["tickets"],
    )


def opened(case: dict[str, Any]) -> Opened:
    return open_request(parse_envelope(bytes.fromhex(case["request"])), keys())


def opener(case: dict[str, Any]) -> AnswerOpener:
    return AnswerOpener(opened(case).secret, opened(case).enc)


def test_the_script_makes_the_file() -> None:
    """Run again, it changes nothing."""
    assert text() == FILE.read_text()
    assert [case["suite"] for case in VECTORS["cases"]] == [suite.name for suite in SUITES.values()]


@CASES
def test_a_request(case: dict[str, Any]) -> None:
    """It opens with the private keys, to exactly these bytes and this content."""
    assert keys().public_x_wing.hex() == VECTORS["sealing_x_wing"]
    assert keys().public_x25519.hex() == VECTORS["sealing_x25519"]
    envelope = parse_envelope(bytes.fromhex(case["request"]))
    assert (envelope.suite.name, envelope.statement.hex()) == (case["suite"], VECTORS["statement"])
    found = opened(case)
    assert (found.secret + found.content).hex() == case["plaintext"]
    message = parse_message(found.content)
    head = {"method": message.head.method, "target": message.head.target}
    assert {**head, "headers": [list(pair) for pair in message.head.headers]} == case["head"]
    assert (message.time, message.body.decode()) == (case["time"], case["body"])


@CASES
def test_an_answer(case: dict[str, Any]) -> None:
    """Sealing gives these bytes, and opening them gives the pieces back."""
    answer = case["answer"]
    head = ResponseHead(status=answer["head"]["status"], headers=tuple(map(tuple, answer["head"]["headers"])))
    sealer = AnswerSealer(opened(case).secret, opened(case).enc, random=bytes.fromhex(answer["random"]))
    pieces = [piece.encode() for piece in answer["pieces"]]
    wire = [sealer.seal(pieces[0], head=head)]
    wire += [sealer.seal(piece, last=piece is pieces[-1]) for piece in pieces[1:]]
    assert b"".join(wire).hex() == answer["random"] + "".join(answer["chunks"])
    reader = opener(case)
    assert reader.feed(b"".join(wire)) == b"".join(pieces)
    reader.end()
    assert reader.head == head


def hkdf(secret: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """RFC 5869 written out: a key of 32 bytes and a nonce of 12."""
    prk = hmac.digest(salt, secret, "sha256")
    one = hmac.digest(prk, info + b"\x01", "sha256")
    return one, hmac.digest(prk, one + info + b"\x02", "sha256")[:12]


def test_a_ticket_as_the_document_says() -> None:
    """Read by nothing but docs/protocol.md: the ticket's secret from its id, and the key from both."""
    (case,) = [case for case in VECTORS["cases"] if case["suite"] == "ticket"]
    request, ticket = bytes.fromhex(case["request"]), case["ticket"]
    name, statement = bytes.fromhex(ticket["id"]), bytes.fromhex(VECTORS["statement"])
    assert (request[:39], request[39:79]) == (b"\1\0\0\0\1\0\2" + statement, name)
    assert int.from_bytes(name[32:], "big") == case["time"] - 300
    text = b"attested-inference/sealed-ticket/v1\0" + statement + name
    secret = hmac.digest(bytes.fromhex(VECTORS["private"]["tickets"]), text, "sha256")
    assert secret.hex() == ticket["secret"]
    key = hmac.digest(secret, b"attested-inference/sealed-ticket-request/v1\0" + request[:111], "sha256")
    assert AESGCM(key).decrypt(bytes(12), request[111:], None).hex() == case["plaintext"]


@CASES
def test_an_answer_as_the_document_says(case: dict[str, Any]) -> None:
    """Read by nothing but docs/protocol.md: HKDF written out, nonces counted, the last chunk marked, zeros at the end."""
    request, answer = bytes.fromhex(case["request"]), case["answer"]
    enc = request[39 : 39 + {"x-wing": 1120, "x25519": 32, "ticket": 72}[case["suite"]]]
    secret, random = bytes.fromhex(case["plaintext"])[:32], bytes.fromhex(answer["random"])
    key, nonce = hkdf(secret, enc + random, b"attested-inference/sealed-answer/v1")
    base = int.from_bytes(nonce, "big")
    data = b""
    for place, text_of_chunk in enumerate(answer["chunks"]):
        chunk = bytes.fromhex(text_of_chunk)
        last = place == len(answer["chunks"]) - 1
        assert (chunk[0], int.from_bytes(chunk[1:5], "big")) == (last, len(chunk) - 5)
        nonce = (base ^ place).to_bytes(12, "big")
        plain = AESGCM(key).decrypt(nonce, chunk[5:], b"final" if last else b"")
        end = 4 + int.from_bytes(plain[:4], "big")
        assert not any(plain[end:])
        assert len(plain) == 512
        data += plain[4:end]
    length = int.from_bytes(data[:4], "big")
    assert json.loads(data[4 : 4 + length]) == answer["head"]
    assert data[4 + length :].decode() == "".join(answer["pieces"])


def read(reader: AnswerOpener, answer: bytes) -> None:
    reader.feed(answer)
    reader.end()


@CASES
def test_what_must_be_refused(case: dict[str, Any]) -> None:
    """Each by the check that the file names."""
    assert [refused["what"] for refused in case["refused"]] == list(REFUSED)
    for refused in case["refused"]:
        reader = opener(case)
        with pytest.raises(AttestationError) as caught:
            read(reader, bytes.fromhex(refused["answer"]))
        assert caught.value.check == refused["check"], refused["what"]
