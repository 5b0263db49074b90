"""Token ids and log-probabilities out of an answer's bytes, plain or streamed, of chats and completions alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.receipt import COMMENT
from attestation.tokens import ID_LIMIT, RunningTokens

MAX_ANSWER_BYTES = 256 * 1024 * 1024  # log-probabilities of a long prompt are long
LEAST = -1e6  # vLLM writes -9999 for what cannot be
_DATA, _DONE = b"data: ", b"[DONE]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of an answer's choices in tokens."""

    prompt: tuple[int, ...] = field(repr=False)
    output: tuple[int, ...] = field(repr=False)
    logprobs: tuple[float, ...] | None = field(default=None, repr=False)  # of the output, if asked for


@dataclass(frozen=True, slots=True)
class Ranked:
    """A token and what the model thought of it where it stands; the end of an answer is no token."""

    token: int | None
    logprob: float | None = None

    def __str__(self) -> str:
        name = "the end" if self.token is None else f"token {self.token}"
        return name if self.logprob is None else f"{name} (log-probability {self.logprob:.4f})"


@dataclass(slots=True)
class _Growing:
    prompt: list[int] | None = None
    output: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)


def read_choices(answer: bytes) -> tuple[Choice, ...]:
    """Every choice of an answer, from the first on. MalformedError where the ids of one are missing."""
    shared: list[int] | None = None
    found: dict[int, _Growing] = {}
    for value in _objects(answer):
        if (ids := value.get("prompt_token_ids")) is not None:
            shared = _ids(ids)
        for choice in _list(value.get("choices", [])):
            index = choice.get("index") if type(choice) is dict else None
            if type(index) is not int:
                raise _malformed("a choice without an index")
            _grow(found.setdefault(index, _Growing()), choice)
    if sorted(found) != list(range(len(found))) or not found:
        raise _malformed(f"the choices are numbered {sorted(found)}")
    return tuple(_whole(found[index], shared) for index in range(len(found)))


def digest_of(choices: Sequence[Choice], nonce: bytes) -> bytes:
    """What the receipt's claim `tokens` must be."""
    running = RunningTokens()
    for index, choice in enumerate(choices):
        running.prompt(choice.prompt, index)
        running.output(index, choice.output)
    return running.digest(nonce) or b""


def read_prefill(answer: bytes, choices: Sequence[Choice]) -> list[list[tuple[Ranked, Ranked]]]:
    """Of each choice's output tokens, in an answer with `prompt_logprobs` to prompt and output: the token, and the likeliest."""
    judged = []
    values = list(_objects(answer))
    listed = _list(values[0].get("choices") if len(values) == 1 else None)
    if len(listed) != len(choices):
        raise _malformed(f"{len(listed)} choices, expected {len(choices)}")
    for choice, told in zip(choices, listed, strict=True):
        entries = _list(told.get("prompt_logprobs") if type(told) is dict else None)
        if len(entries) != len(choice.prompt) + len(choice.output):
            raise _malformed(f"log-probabilities of {len(entries)} tokens")
        judged.append(list(map(_judged, choice.output, entries[len(choice.prompt) :])))
    return judged


def _judged(token: int, entry: object) -> tuple[Ranked, Ranked]:
    if type(entry) is not dict or str(token) not in entry:
        raise _malformed("no log-probability of a token")
    ranked = [Ranked(_number(name), _float(value)) for name, value in entry.items()]
    best = max(ranked, key=lambda one: one.logprob or 0.0)
    return next(one for one in ranked if one.token == token), best


def _objects(answer: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of an answer: the one of a plain answer, or those of a stream's events."""
    if not answer.lstrip().startswith((_DATA, COMMENT)):
        yield parse_json_object(answer, Check.REPLAY_ANSWER, "the answer", limit=MAX_ANSWER_BYTES)
        return
    for event in answer.split(b"\n\n"):
        data = event.lstrip(b"\n").removeprefix(_DATA)
        if event.lstrip(b"\n").startswith(_DATA) and data != _DONE:
            yield parse_json_object(data, Check.REPLAY_ANSWER, "an event", limit=MAX_ANSWER_BYTES)


def _grow(growing: _Growing, choice: Mapping[str, Any]) -> None:
    if (ids := choice.get("prompt_token_ids")) is not None:
        growing.prompt = _ids(ids)
    if (ids := choice.get("token_ids")) is not None:
        growing.output = (growing.output or []) + _ids(ids)
    told = choice.get("logprobs")
    if type(told) is dict:
        content = told.get("token_logprobs")  # of a completion; a chat has a list of objects
        listed = _list(told.get("content") or []) if content is None else _list(content)
        growing.logprobs += [_float(entry) for entry in listed if entry is not None]


def _whole(growing: _Growing, shared: list[int] | None) -> Choice:
    prompt = shared if growing.prompt is None else growing.prompt
    if prompt is None or growing.output is None:
        raise _malformed(
            "a choice without token ids: the answer was asked for without them, or they are hidden"
        )
    told = tuple(growing.logprobs) if len(growing.logprobs) == len(growing.output) else None
    return Choice(prompt=tuple(prompt), output=tuple(growing.output), logprobs=told)


def _ids(value: object) -> list[int]:
    ids = _list(value)
    if not all(type(token) is int and 0 <= token < ID_LIMIT for token in ids):
        raise _malformed("a token id that is none")
    return ids


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise _malformed(f"a list was expected, found {type(value).__name__}")
    return value


def _float(value: object) -> float:
    """A log-probability, alone or in an object that has more to say."""
    if type(value) is dict:
        value = value.get("logprob")
    if not isinstance(value, int | float) or not LEAST <= value <= 1:
        raise _malformed("a log-probability that is none")
    return float(value)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise _malformed("a token id that is none")
    return int(text)


def _malformed(what: str) -> MalformedError:
    return MalformedError(Check.REPLAY_ANSWER, f"the answer cannot be compared: {what}")
