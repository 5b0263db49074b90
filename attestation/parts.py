"""The parts of one chat that can be shown one by one: the request's messages, and the text of the answer's choices.

    salt   = HKDF-SHA256( nonce, info = "attested-inference/part/v1" ‖ 0x00 ‖ "message" or "choice" ‖ "/" ‖ index, 32 bytes )
    digest = SHA-256( salt ‖ value )
    parts  = SHA-256( "attested-inference/parts/v1" ‖ 0x00 ‖ number of messages ‖ their digests
                                                          ‖ number of choices  ‖ their digests )

A message's value is its JSON exactly as it stands in the request; a choice's is its `content` as UTF-8, in a stream that of
all its events put together. Numbers have 4 bytes. The nonce is the request's: whoever knows it can make every salt, and
one salt tells nothing about another. So a receipt that names `parts` commits to each part, and gives none away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.receipt import RunningDigest

DISCLOSURE_HEADER = "Attested-Disclosure"
SALT_BYTES = 32
MAX_ANSWER_BYTES = 64 * 1024 * 1024
_SALT, _PARTS = b"attested-inference/part/v1\0", b"attested-inference/parts/v1\0"
_SPACE = re.compile(r"[ \t\n\r]*")
_CLOSING = {"{": "}", "[": "]"}
_decode = json.JSONDecoder().raw_decode


def part_salt(nonce: bytes, kind: str, index: int) -> bytes:
    """The salt of one part; `kind` is "message" or "choice"."""
    info = _SALT + f"{kind}/{index}".encode()
    return HKDF(algorithm=SHA256(), length=SALT_BYTES, salt=None, info=info).derive(nonce)


def part_digest(salt: bytes, value: bytes) -> bytes:
    return RunningDigest(salt, value).digest()


def parts_digest(messages: Sequence[bytes], choices: Sequence[bytes]) -> bytes:
    """What a receipt names: over the digests of all parts, in order."""
    whole = RunningDigest(_PARTS)
    for digests in (messages, choices):
        whole.update(len(digests).to_bytes(4, "big") + b"".join(digests))
    return whole.digest()


def messages_of(request: bytes) -> list[bytes]:
    """The bytes of each element of `messages`, exactly as they stand in the request's JSON."""
    try:
        text = request.decode()
        found = [start for name, start, _ in _items(text, _skip(text, 0)) if name == "messages"]
        if len(found) != 1 or text[found[0]] != "[":
            raise ValueError("no one list of messages")
        return [text[start:end].encode() for _, start, end in _items(text, found[0])]
    except (ValueError, LookupError, RecursionError) as exc:
        raise MalformedError(Check.RECEIPT_PARTS, f"the request has no messages: {exc}") from exc


def texts_of(answer: bytes) -> list[bytes]:
    """The text of each choice of a whole answer, plain or streamed."""
    texts: dict[int, bytearray] = {}
    for index, piece in _pieces(answer):
        texts.setdefault(index, bytearray()).extend(piece)
    if texts.keys() != set(range(len(texts))):
        raise MalformedError(Check.RECEIPT_PARTS, "the choices are not numbered from 0 without a gap")
    return [bytes(texts[index]) for index in range(len(texts))]


class RunningParts:
    """The digest over the parts of one exchange, whose answer arrives in pieces. It keeps hashes, and no text."""

    __slots__ = ("_choices", "_messages", "_nonce", "_readable")

    def __init__(self, nonce: bytes, request: bytes) -> None:
        self._nonce, self._readable = nonce, True
        self._messages = [
            part_digest(part_salt(nonce, "message", index), value)
            for index, value in enumerate(messages_of(request))
        ]
        self._choices: dict[int, RunningDigest] = {}

    def answer(self, data: bytes) -> None:
        """Take a whole plain answer, or the next whole events of a stream."""
        try:
            for index, text in _pieces(data):
                if index not in self._choices:
                    self._choices[index] = RunningDigest(part_salt(self._nonce, "choice", index))
                self._choices[index].update(text)
        except MalformedError:
            self._readable = False

    def digest(self) -> bytes | None:
        """None where the answer has no choices, or what was read of it is not laid out as choices are."""
        numbers = range(len(self._choices))
        if not self._readable or not self._choices or self._choices.keys() != set(numbers):
            return None
        return parts_digest(self._messages, [self._choices[number].digest() for number in numbers])


def _pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Index and text of each choice that `data` has something of: a plain answer, or whole events."""
    events = data.split(b"\n\n")
    answers = [data] if data.startswith(b"{") else [e[6:] for e in events if e.startswith(b"data: {")]
    for answer in answers:
        value = parse_json_object(answer, Check.RECEIPT_PARTS, "the answer", limit=MAX_ANSWER_BYTES)
        choices = value.get("choices", [])
        if type(choices) is not list:
            raise _unknown()
        for choice in choices:
            yield _piece(choice)


def _piece(choice: Any) -> tuple[int, bytes]:
    if type(choice) is not dict:
        raise _unknown()
    index, said = choice.get("index"), choice.get("message", choice.get("delta"))
    text = said.get("content") if type(said) is dict else 0
    if type(index) is not int or index < 0 or not (text is None or type(text) is str):
        raise _unknown()
    try:
        return index, (text or "").encode()
    except UnicodeEncodeError as exc:
        raise MalformedError(Check.RECEIPT_PARTS, "half of a surrogate pair") from exc


def _unknown() -> MalformedError:
    return MalformedError(Check.RECEIPT_PARTS, "the answer is not laid out as a chat completion")


def _items(text: str, at: int) -> Iterator[tuple[str | None, int, int]]:
    """Name, start and end of each value of the JSON object or array that begins at `at`."""
    closing = _CLOSING[text[at]]
    at = _skip(text, at + 1)
    while text[at] != closing:
        name = None
        if closing == "}":
            _expect(text, at, '"')
            name, at = _decode(text, at)
            at = _skip(text, _expect(text, _skip(text, at), ":"))
        _, end = _decode(text, at)
        yield name, at, end
        at = _skip(text, end)
        if text[at] != closing:
            at = _skip(text, _expect(text, at, ","))


def _expect(text: str, at: int, sign: str) -> int:
    if text[at] != sign:
        raise ValueError(f"expected {sign!r} at {at}")
    return at + 1


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
