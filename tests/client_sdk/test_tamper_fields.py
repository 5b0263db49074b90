"""The tamper table, field by field: every claim of a receipt and a checkpoint, every field of a sealed request and chunk.

On the way each is changed, dropped, doubled and moved, and refused. Claims are also signed anew with the enclave's own key,
so that the check about each is seen to work alone; the few that only the enclave can know are believed, and listed as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from attestation._b64 import b64url_decode, b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.receipt import COMMENT, RECEIPT_HEADER, Outcome, Receipt, Usage
from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import parse_request_head, parse_response_head
from client_sdk.receipts import PlainCheck
from client_sdk.streams import StreamCheck
from tests.attestation.sealing import exchange, read, seal, unseal
from tests.client_sdk.pretend import ANSWER, EVENTS, NOW, PretendEnclave, stream_headers

ENCLAVE = PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
ONE, TWO, THREE, USAGE, DONE = EVENTS
FULL: dict[str, Any] = {
    "usage": Usage(prompt_tokens=3, completion_tokens=2, cached_tokens=1),
    "sampling": {"seed": 1},
    "tokens": b"\x01" * 32,
    "parts": b"\x02" * 32,
}


def found(call: Callable[..., object], *args: Any) -> Check | None:
    """The check that refuses; None when nothing does."""
    try:
        call(*args)
    except AttestationError as error:
        return error.check
    return None


# ------------------------------------------------------------------------- receipts and checkpoints, claim by claim

CARRIERS = ("plain", "checkpoint", "stream")
FIRST = ENCLAVE.comment(EXCHANGE, ONE + TWO, outcome=Outcome.CHECKPOINT, checkpoints=1)
TOKENS = {
    "plain": ENCLAVE.receipt(EXCHANGE, ANSWER, **FULL),
    "checkpoint": ENCLAVE.receipt(
        EXCHANGE, ONE + TWO + THREE, outcome=Outcome.CHECKPOINT, checkpoints=2, **FULL
    ),
    "stream": ENCLAVE.receipt(EXCHANGE, b"".join(EVENTS), checkpoints=1, **FULL),
}
END = ENCLAVE.comment(EXCHANGE, b"".join(EVENTS), checkpoints=2)


def take(carrier: str, token: str) -> None:
    """What a client does with an answer whose receipt, checkpoint or last receipt is `token`."""
    if carrier == "plain":
        plain = PlainCheck(EXCHANGE, 200, {**ENCLAVE.headers(EXCHANGE, ANSWER), RECEIPT_HEADER: token})
        plain.feed(ANSWER)
        plain.finish(NOW)
        return
    comment = COMMENT + token.encode() + b"\n\n"
    rest = [comment, USAGE, DONE, END] if carrier == "checkpoint" else [USAGE, DONE, comment]
    stream = StreamCheck(EXCHANGE, 200, stream_headers(EXCHANGE))
    for _ in stream.feed(b"".join([ONE, TWO, FIRST, THREE, *rest]), NOW):
        pass
    stream.finish(NOW)
    stream.conclude()


def claims_of(cls: type, within: str = "") -> Iterator[str]:
    """Every claim that is a value: `id`, `request.method` …"""
    hints = get_type_hints(cls)
    for spec in fields(cls):
        hint = next(
            (h for h in (hints[spec.name], *getattr(hints[spec.name], "__args__", ())) if is_dataclass(h)),
            None,
        )
        if isinstance(hint, type):
            yield from claims_of(hint, f"{within}{spec.name}.")
        else:
            yield within + spec.name


_REQUEST = (Check.RECEIPT_REQUEST,) * 3
_RESPONSE = (Check.RECEIPT_RESPONSE,) * 3
_BELIEVED = (None,) * 3
ZEROS = "00" * 32
#: Of each claim: another value, and what refuses it in a plain answer, a checkpoint and a stream's receipt when the enclave
#: itself signed it. None: only the enclave knows it, and it is believed.
SIGNED: dict[str, tuple[Any, tuple[Check | None, ...]]] = {
    "id": ("r-2", (None, Check.STREAM_CHECKPOINT, Check.STREAM_CHECKPOINT)),
    "counter": (2, _BELIEVED),
    "time": (int(NOW.timestamp()) - 301, (Check.RECEIPT_TIME,) * 3),
    "request.method": ("PUT", _REQUEST),
    "request.path": ("/v1/completions", _REQUEST),
    "request.digest": (ZEROS, _REQUEST),
    "request.length": (1, _REQUEST),
    "response.status": (201, (Check.RECEIPT_STATUS,) * 3),
    "response.digest": (ZEROS, _RESPONSE),
    "response.length": (1, _RESPONSE),
    "outcome": ("aborted", (Check.RECEIPT_OUTCOME, Check.RECEIPT_RESPONSE, Check.RECEIPT_OUTCOME)),
    "model.name": ("better", _BELIEVED),
    "model.digest": (ZEROS, (Check.RECEIPT_MODEL,) * 3),
    "usage.prompt_tokens": (1000, _BELIEVED),
    "usage.completion_tokens": (1000, _BELIEVED),
    "usage.cached_tokens": (1000, _BELIEVED),
    "sampling": ({"seed": 2}, _BELIEVED),
    "statement": (ZEROS, (Check.RECEIPT_STATEMENT,) * 3),
    "checkpoints": (7, (None, Check.STREAM_CHECKPOINT, Check.STREAM_CHECKPOINT)),
    "tokens": (ZEROS, _BELIEVED),
    "parts": (ZEROS, _BELIEVED),
}
#: Claims that a receipt may lack: what then stands for them is not what the enclave would have left out.
OPTIONAL = {"usage.cached_tokens", "sampling", "checkpoints", "tokens", "parts"}


def test_every_claim_is_in_the_table() -> None:
    """A claim that is added to receipts has to say here what refuses it."""
    assert set(claims_of(Receipt)) == SIGNED.keys()


@pytest.mark.parametrize("carrier", CARRIERS)
def test_untouched(carrier: str) -> None:
    """Nothing is wrong with what the tables change."""
    take(carrier, TOKENS[carrier])


def payload_of(token: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(b64url_decode(token.split(".")[1], Check.RECEIPT_FORMAT, "payload"))
    return value


def with_payload(token: str, payload: str, *, signed: bool) -> str:
    """The token with other claims: under the old signature, or under a new one of the enclave's own key."""
    head, _, signature = token.split(".")
    text = f"{head}.{b64url_encode(payload.encode())}"
    return f"{text}.{b64url_encode(ENCLAVE.receipt_key.sign(text.encode())) if signed else signature}"


def changed(claims: dict[str, Any], claim: str) -> str:
    return edited(claims, claim, lambda table, name: {**table, name: SIGNED[claim][0]})


def dropped(claims: dict[str, Any], claim: str) -> str:
    return edited(claims, claim, lambda table, name: {k: v for k, v in table.items() if k != name})


def moved(claims: dict[str, Any], claim: str) -> str:
    def edit(table: dict[str, Any], name: str) -> dict[str, Any]:
        rest = {k: v for k, v in table.items() if k != name}
        return {**rest, name: table[name]} if list(table)[-1] != name else {name: table[name], **rest}

    return edited(claims, claim, edit)


def twice(claims: dict[str, Any], claim: str) -> str:
    """JSON of which two readers may read different things."""
    text = edited(claims, claim, lambda table, name: {**table, "again": table[name]})
    return text.replace('"again":', json.dumps(claim.rpartition(".")[2]) + ":")


Edit = Callable[[dict[str, Any], str], dict[str, Any]]


def edited(claims: dict[str, Any], claim: str, edit: Edit) -> str:
    """The claims as JSON, with one edit of the object that `claim` stands in."""
    inside, _, name = claim.rpartition(".")
    made = {**claims, inside: edit(claims[inside], name)} if inside else edit(claims, name)
    return json.dumps(made, separators=(",", ":"))


WAYS: dict[str, Callable[[dict[str, Any], str], str]] = {
    "changed": changed,
    "dropped": dropped,
    "twice": twice,
    "moved": moved,
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("claim", SIGNED)
def test_a_claim_altered_on_the_way(claim: str, carrier: str) -> None:
    """Whatever is done to it: it is not what the enclave signed."""
    token = TOKENS[carrier]
    for way, edit in WAYS.items():
        altered = with_payload(token, edit(payload_of(token), claim), signed=False)
        assert altered != token
        assert found(take, carrier, altered) is Check.RECEIPT_SIGNATURE, way


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("claim", SIGNED)
def test_a_claim_that_the_enclave_signed_otherwise(claim: str, carrier: str) -> None:
    """Another value fails the check that is about it; a doubled or missing claim is malformed; order means nothing."""
    token, claims = TOKENS[carrier], payload_of(TOKENS[carrier])

    def signed(way: str) -> Check | None:
        return found(take, carrier, with_payload(token, WAYS[way](claims, claim), signed=True))

    assert signed("changed") is SIGNED[claim][1][CARRIERS.index(carrier)]
    assert signed("twice") is Check.RECEIPT_FORMAT
    assert signed("moved") is None
    if claim not in OPTIONAL:
        assert signed("dropped") is Check.RECEIPT_FORMAT
    elif claim == "checkpoints" and carrier != "plain":
        assert signed("dropped") is Check.STREAM_CHECKPOINT


def _head(**members: str) -> str:
    return b64url_encode(json.dumps(members, separators=(",", ":")).encode())


#: The header and the three segments of the JWS.
JWS: dict[str, tuple[Check, Callable[[list[str]], list[str]]]] = {
    "`alg` changed to none": (
        Check.RECEIPT_FORMAT,
        lambda t: [_head(alg="none", typ="attested-receipt+jwt"), t[1], ""],
    ),
    "`alg` changed to HS256": (
        Check.RECEIPT_FORMAT,
        lambda t: [_head(alg="HS256", typ="attested-receipt+jwt"), t[1], t[2]],
    ),
    "`alg` dropped": (Check.RECEIPT_FORMAT, lambda t: [_head(typ="attested-receipt+jwt"), *t[1:]]),
    "`typ` changed": (Check.RECEIPT_FORMAT, lambda t: [_head(alg="EdDSA", typ="JWT"), *t[1:]]),
    "`typ` dropped": (Check.RECEIPT_FORMAT, lambda t: [_head(alg="EdDSA"), *t[1:]]),
    "`alg` twice": (
        Check.RECEIPT_FORMAT,
        lambda t: [b64url_encode(b'{"alg":"EdDSA","typ":"attested-receipt+jwt","alg":"EdDSA"}'), *t[1:]],
    ),
    "`kid` added": (
        Check.RECEIPT_FORMAT,
        lambda t: [_head(alg="EdDSA", typ="attested-receipt+jwt", kid="1"), *t[1:]],
    ),
    "the header's members in another order": (
        Check.RECEIPT_SIGNATURE,
        lambda t: [_head(typ="attested-receipt+jwt", alg="EdDSA"), *t[1:]],
    ),
    "the signature dropped": (Check.RECEIPT_FORMAT, lambda t: t[:2]),
    "an empty signature": (Check.RECEIPT_SIGNATURE, lambda t: [*t[:2], ""]),
    "the signature twice": (Check.RECEIPT_FORMAT, lambda t: [*t, t[2]]),
    "the signature of another receipt": (
        Check.RECEIPT_SIGNATURE,
        lambda t: [*t[:2], ENCLAVE.receipt(EXCHANGE, b"else").split(".")[2]],
    ),
    "the segments in another order": (Check.RECEIPT_FORMAT, lambda t: [t[1], t[0], t[2]]),
    "padding added": (Check.RECEIPT_FORMAT, lambda t: [t[0], t[1], t[2] + "=="]),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("case", JWS)
def test_the_signed_envelope(case: str, carrier: str) -> None:
    """There is one algorithm, one type, one spelling."""
    check, edit = JWS[case]
    assert found(take, carrier, ".".join(edit(TOKENS[carrier].split(".")))) is check


# ------------------------------------------------------------------------------ sealed exchanges, field by field

_OPEN, _FORMAT, _SUITE = Check.SEALED_OPEN, Check.SEALED_FORMAT, Check.SEALED_SUITE
_CUT = Check.SEALED_TRUNCATED
#: How a field is altered; "moved" exchanges it with the next one, "foreign" takes it from another request or answer.
FIELD_WAYS = ("changed", "dropped", "twice", "moved", "foreign")
REQUEST_FIELDS: dict[str, tuple[slice, tuple[Check | None, ...]]] = {
    "version": (slice(0, 1), (_FORMAT, _FORMAT, _SUITE, _FORMAT, None)),
    "suite": (slice(1, 7), (_SUITE, _SUITE, _OPEN, _SUITE, None)),
    "statement": (slice(7, 39), (_OPEN, _OPEN, _OPEN, _OPEN, None)),
    "enc": (slice(39, 1159), (_OPEN, _FORMAT, _OPEN, _OPEN, _OPEN)),
    "ciphertext": (slice(1159, None), (_OPEN, _FORMAT, _OPEN, _FORMAT, _OPEN)),
}
CHUNK_FIELDS: dict[str, tuple[slice, tuple[Check | None, ...]]] = {
    "mark of a chunk": (slice(0, 1), (_CUT, _CUT, _FORMAT, _CUT, None)),
    "length of a chunk": (slice(1, 5), (_OPEN, _FORMAT, _OPEN, _FORMAT, None)),
    "ciphertext of a chunk": (slice(5, None), (_OPEN, _OPEN, _FORMAT, _FORMAT, _OPEN)),
}


def altered(mine: list[bytes], other: list[bytes], at: int, way: str) -> bytes:
    """The fields put together again, with one of them altered."""
    parts = list(mine)
    following = (at + 1) % len(parts)
    match way:
        case "changed":
            parts[at] = parts[at][:-1] + bytes([parts[at][-1] ^ 1])
        case "dropped":
            parts[at] = b""
        case "twice":
            parts[at] *= 2
        case "moved":
            parts[at], parts[following] = parts[following], parts[at]
        case "foreign":
            parts[at] = other[at]
    return b"".join(parts)


def sealed_request() -> list[bytes]:
    """The fields of one; its ciphertext does not happen to begin like something else."""
    while True:
        data = seal()[0]
        parts = [data[where] for where, _ in REQUEST_FIELDS.values()]
        if parts[-1][0] > 1:
            return parts


def sealed_answer() -> tuple[AnswerOpener, list[bytes], list[bytes]]:
    """What opens it, its pieces, and the fields of its second chunk."""
    while True:
        opener, chunks = exchange()
        if chunks[2][5] > 1:
            return opener, chunks, [chunks[2][where] for where, _ in CHUNK_FIELDS.values()]


@pytest.mark.parametrize("way", FIELD_WAYS)
@pytest.mark.parametrize("name", REQUEST_FIELDS)
def test_a_field_of_a_sealed_request(name: str, way: str) -> None:
    """No field can be altered, nor taken from another request, unless it is the same there."""
    check = REQUEST_FIELDS[name][1][FIELD_WAYS.index(way)]
    mine, other = sealed_request(), sealed_request()
    at = list(REQUEST_FIELDS).index(name)
    assert (check is None) == (way == "foreign" and mine[at] == other[at])
    assert found(unseal, altered(mine, other, at, way)) is check


@pytest.mark.parametrize("way", FIELD_WAYS)
@pytest.mark.parametrize("name", CHUNK_FIELDS)
def test_a_field_of_a_sealed_chunk(name: str, way: str) -> None:
    """The same for the mark, the length and the ciphertext of a chunk in the middle of an answer."""
    check = CHUNK_FIELDS[name][1][FIELD_WAYS.index(way)]
    (opener, chunks, mine), (_, _, other) = sealed_answer(), sealed_answer()
    at = list(CHUNK_FIELDS).index(name)
    assert (check is None) == (way == "foreign" and mine[at] == other[at])
    assert found(read, opener, [*chunks[:2], altered(mine, other, at, way), *chunks[3:]]) is check


HEADS: dict[str, tuple[Callable[..., object], dict[str, Any]]] = {
    "request": (parse_request_head, {"method": "GET", "target": "/v1", "headers": []}),
    "answer": (parse_response_head, {"status": 200, "headers": []}),
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, head) in HEADS.items() for name in head]
)
def test_a_member_of_a_sealed_head(kind: str, name: str) -> None:
    """Nobody on the way can alter it; a sender that leaves one out, doubles it or gives it no sense is refused, too."""
    parse, head = HEADS[kind]
    parse(json.dumps(head).encode(), limit=1000)
    without = {key: value for key, value in head.items() if key != name}
    doubled = json.dumps({**head, "again": head[name]}).replace("again", name)
    for text in (json.dumps(without), doubled, json.dumps({**head, name: None})):
        assert found(lambda text=text: parse(text.encode(), limit=1000)) is Check.SEALED_FORMAT


def test_truncation_at_every_boundary_of_chunks() -> None:
    """Each chunk opens, and the answer is known to be cut; cut off by one byte more or less, too."""
    opener, chunks, _ = sealed_answer()
    for count in range(len(chunks)):
        for extra in (b"", chunks[count][:1]):
            fresh = AnswerOpener(opener._secret, opener._enc)
            assert found(read, fresh, [*chunks[:count], extra]) is Check.SEALED_TRUNCATED, count
