"""The few fields the gateway reads from requests and answers. Nothing is ever serialised again: bytes pass through.

A request is read once, with the parser that vLLM reads it with, and more strictly: what two readers could take for two
different requests is refused. So the fields that were judged here are those that the engine acts on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from attestation._json import json_reader
from attestation.receipt import Usage
from enclave_server.errors import ApiError, engine_aborted

MAX_DEPTH = 64  # JSON Schemas of tools reach about 20
MAX_SAMPLING_BYTES = 6 * 1024  # the receipt carries them and has 16 KiB in all
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Refused: doubled names at any depth, other encodings and byte order marks, NaN and Infinity,
    numbers outside of 64 bits, lone surrogates, trailing bytes, more than `MAX_DEPTH` levels."""
    try:
        text = body.decode()
        value = _read(text)
        if "\\" in text and _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # raises for half of a surrogate pair
    except (ValueError, RecursionError):
        raise ApiError(
            400, "invalid_json", "The request's body is not JSON, or could be read in two ways."
        ) from None
    if type(value) is not dict:
        raise ApiError(400, "invalid_type", "The request's body is not a JSON object.")
    if len(body) - len(body.translate(None, b"{[")) > MAX_DEPTH:  # a third of the time of counting them
        _check_depth(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ApiError(400, "duplicate_key", "A JSON object in the request's body has a name twice.")
    return members


def _integer(text: str) -> int:
    if len(text) < 19:
        return int(text)
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError("beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise ValueError("beyond a double")
    return value


def _constant(_: str) -> NoReturn:
    raise ValueError("no JSON")


_read = json_reader(
    json.JSONDecoder(
        object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
    )
)


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        children = (node.values() if type(node) is dict else node for node in level)
        level = [child for few in children for child in few if type(child) in (dict, list)]
        if not level:
            return
    raise ApiError(400, "too_deep", f"The request's body may have {MAX_DEPTH} levels.")


_Number = int | float | None


class _Body(msgspec.Struct):
    """What a request may say about sampling. `model` and `stream` are checked for their type only."""

    model: str | None = None
    stream: bool | None = None
    temperature: _Number = None
    top_p: _Number = None
    top_k: _Number = None
    min_p: _Number = None
    seed: int | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_sequences: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: _Number = None
    frequency_penalty: _Number = None
    repetition_penalty: _Number = None
    repetition_detection: dict[str, _Number] | None = None
    logit_bias: dict[str, _Number] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    use_beam_search: bool | None = None
    length_penalty: _Number = None
    thinking_token_budget: int | None = None


SAMPLING = tuple(name for name in _Body.__struct_fields__ if name not in {"model", "stream"})
_SAMPLING = frozenset(SAMPLING)


# What vLLM does with what a request leaves open: `--generation-config=vllm` keeps the model's own defaults out.
DEFAULTS: Mapping[str, Any] = {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "seed": None,
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
}


def sampling_of(fields: Mapping[str, Any], defaults: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The sampling parameters in effect, for the receipt: those that a request sets, and the defaults of its route."""
    try:
        request = msgspec.convert(fields, _Body)
    except msgspec.ValidationError as exc:
        field = re.search(r"`\$\.(\w+)", str(exc))
        known = field[1] if field and field[1] in _Body.__struct_fields__ else None
        raise ApiError(
            400, "invalid_type", "A field of the request has the wrong type.", param=known
        ) from None
    given = _SAMPLING.intersection(fields)
    if not given:
        return {**defaults}
    names = sorted(given, key=SAMPLING.index)
    values = [(name, getattr(request, name)) for name in names]
    sampling = {**defaults, **{name: value for name, value in values if value is not None}}
    long = any(type(value) in {str, list, dict} for _, value in values)  # numbers alone cannot fill it
    if long and len(json.dumps(sampling)) > MAX_SAMPLING_BYTES:
        raise ApiError(
            400,
            "sampling_too_large",
            f"Sampling parameters may have {MAX_SAMPLING_BYTES} bytes, as a receipt names them.",
        )
    return sampling


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None  # what /v1/responses and /v1/messages call them
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None  # /v1/responses
    cache_read_input_tokens: int | None = None  # /v1/messages, where they are no part of input_tokens
    cache_creation_input_tokens: int | None = None


class _Inner(msgspec.Struct):
    usage: _Counts | None = None


class _Answer(msgspec.Struct):
    usage: _Counts | None = None
    response: _Inner | None = None  # of an event of /v1/responses


_decode_answer = msgspec.json.Decoder(_Answer).decode


def usage_of(body: bytes) -> Usage | None:
    """The token counts in an answer, or in one event of a stream; None where there are none."""
    try:
        answer = _decode_answer(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    counts = answer.usage
    if counts is None and answer.response is not None:
        counts = answer.response.usage
    if counts is None:
        return None
    prompt = counts.input_tokens if counts.prompt_tokens is None else counts.prompt_tokens
    completion = counts.output_tokens if counts.completion_tokens is None else counts.completion_tokens
    if prompt is None:
        return None
    details = counts.prompt_tokens_details or counts.input_tokens_details
    cached = counts.cache_read_input_tokens if details is None else details.cached_tokens
    apart = (counts.cache_read_input_tokens or 0) + (counts.cache_creation_input_tokens or 0)
    return Usage(prompt_tokens=prompt + apart, completion_tokens=completion or 0, cached_tokens=cached)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_models, _decode_model = msgspec.json.Decoder(_Models).decode, msgspec.json.Decoder(_Model).decode


def one_model(listed: bytes, name: str) -> bytes:
    """What the engine's list says of the model with this name, in the engine's own bytes."""
    try:
        for entry in _decode_models(listed).data:
            if _decode_model(entry).id == name:
                return bytes(entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise engine_aborted() from None
    raise ApiError(
        404, "model_not_found", "There is no such model here; /v1/models lists those that are.", param="model"
    )
