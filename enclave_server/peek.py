"""The few fields the gateway reads from requests and answers. Nothing is ever serialised again: bytes pass through."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from attestation.receipt import Usage
from enclave_server.errors import ApiError

MAX_SAMPLING_BYTES = 6 * 1024  # the receipt carries them and has 16 KiB in all

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
    best_of: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    presence_penalty: _Number = None
    frequency_penalty: _Number = None
    repetition_penalty: _Number = None
    logit_bias: dict[str, _Number] | None = None


_SAMPLING = tuple(name for name in _Body.__struct_fields__ if name not in {"model", "stream"})
_decode_body = msgspec.json.Decoder(_Body).decode


def sampling_of(body: bytes) -> dict[str, Any]:
    """The sampling parameters that a request sets, for its receipt."""
    try:
        request = _decode_body(body)
    except msgspec.ValidationError as exc:
        field = str(exc).rpartition("`$.")[2].rstrip("`") if "`$." in str(exc) else None
        known = field if field in _Body.__struct_fields__ else None
        raise ApiError(
            400, "invalid_type", "A field of the request has the wrong type.", param=known
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ApiError(400, "invalid_json", "The request's body is not JSON.") from None
    values = ((name, getattr(request, name)) for name in _SAMPLING)
    sampling = {name: value for name, value in values if value is not None}
    if sampling and len(json.dumps(sampling)) > MAX_SAMPLING_BYTES:
        raise ApiError(
            400,
            "sampling_too_large",
            f"Sampling parameters may have {MAX_SAMPLING_BYTES} bytes, as a receipt names them.",
        )
    return sampling


class _Counts(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int = 0


class _Answer(msgspec.Struct):
    usage: _Counts | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def usage_of(body: bytes) -> Usage | None:
    """The token counts in an answer, or in one event of a stream; None where there are none."""
    try:
        counts = _decode_answer(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if counts is None:
        return None
    return Usage(prompt_tokens=counts.prompt_tokens, completion_tokens=counts.completion_tokens)
