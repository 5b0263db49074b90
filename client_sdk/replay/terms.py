"""On what terms an answer can be compared: which rounding to expect of an engine, and what a request lets one conclude."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EXACT, HALF = 1e-4, 0.25  # nats; docs/replay.md says where they come from
_GREEDY_BELOW = 1e-5  # vLLM takes the likeliest token below this temperature
_CHANGED_WEIGHTS = ("--quantization", "--kv-cache-dtype")
# Parameters that make the engine choose among other logits than the model's own, and what leaves these alone.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "min_tokens": (0,),
    "thinking_token_budget": (-1,),
}
_STRUCTURE = ("response_format", "structured_outputs", "tools")
_MEDIA = frozenset({"image_url", "input_image", "image", "audio_url", "input_audio", "video_url"})


@dataclass(frozen=True, slots=True)
class Terms:
    """How far two log-probabilities may lie apart."""

    dtype: str
    tolerance: float
    exact: bool  # two engines round so nearly alike that they choose the same tokens


def terms_of(flags: Sequence[str], tolerance: float | None = None) -> Terms:
    """What the engine's flags promise; a `tolerance` of the auditor's own comes first."""
    options = dict(flag.partition("=")[::2] for flag in flags)
    dtype = options.get("--dtype", "auto")
    exact = dtype == "float32" and not any(name in options for name in _CHANGED_WEIGHTS)
    return Terms(dtype, (EXACT if exact else HALF) if tolerance is None else tolerance, exact)


def greedy(sampling: Mapping[str, Any]) -> bool:
    """The engine took the likeliest token each time."""
    temperature = sampling.get("temperature", 1)
    return isinstance(temperature, int | float) and temperature < _GREEDY_BELOW


def plain_logits(sampling: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Tokens were chosen among the model's own logits: no penalty, bias, grammar or tool changed them."""
    free = all(
        sampling[name] in neutral for name, neutral in _NEUTRAL.items() if sampling.get(name) is not None
    )
    return free and all(request.get(name) in (None, [], {"type": "text"}) for name in _STRUCTURE)


def media_in(request: Mapping[str, Any]) -> bool:
    """A message has a part that is no text."""
    return any(part.get("type") in _MEDIA or not _MEDIA.isdisjoint(part) for part in _parts(request))


def _parts(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        yield from (part for part in content if isinstance(part, dict)) if isinstance(content, list) else ()
