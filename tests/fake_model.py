"""The language model of the fake engine: one token for each byte of a text, and one right answer to each prompt.

The right token is likely (-0.1, rank 1), every other one is not (-5, rank 2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

LIKELY, UNLIKELY = -0.1, -5.0


def ids_of(text: str) -> list[int]:
    """The tokens of a text."""
    return list(text.encode())


def logprobs_of(ids: Iterable[int], *, chat: bool) -> dict[str, Any]:
    """What an answer says of its own tokens."""
    if chat:
        return {"content": [{"token": chr(token), "logprob": LIKELY} for token in ids]}
    return {"tokens": [chr(token) for token in ids], "token_logprobs": [LIKELY for _ in ids]}


def with_ids(events: Iterator[bytes], prompt: list[int], *, chat: bool) -> Iterator[bytes]:
    """A stream with token ids, those of the prompt in its first event."""
    first = True
    for event in events:
        value = None if b"[DONE]" in event else json.loads(event.removeprefix(b"data: "))
        if not value or not value["choices"]:
            yield event
            continue
        choice = value["choices"][0]
        if first:
            (value if chat else choice)["prompt_token_ids"] = prompt
        if not (chat and first):
            choice["token_ids"] = ids_of(choice["delta"].get("content", "") if chat else choice["text"])
        first = False
        yield b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


@dataclass
class FakeModel:
    """Knows which prompts were answered, and so where an answer begins in a list of ids."""

    prompts: set[str] = field(default_factory=set)

    def prefill(self, prompts: list[list[int]], answer_to: Callable[[str], str]) -> dict[str, Any]:
        """A completion's answer with the log-probabilities of its prompts' tokens."""
        choices = [
            {
                "index": index,
                "text": "!",
                "finish_reason": "length",
                "prompt_logprobs": self._judge(prompt, answer_to),
            }
            for index, prompt in enumerate(prompts)
        ]
        return {"object": "text_completion", "choices": choices}

    def _judge(self, ids: list[int], answer_to: Callable[[str], str]) -> list[Any]:
        known = [prompt for prompt in self.prompts if ids_of(prompt) == ids[: len(ids_of(prompt))]]
        prompt = max(known, key=len)
        right = ids_of(prompt + answer_to(prompt))
        found: list[Any] = [None]
        for at, token in enumerate(ids[1:], 1):
            best = right[at] if at < len(right) else 0
            entry = {str(best): {"logprob": LIKELY, "rank": 1}}
            if token != best:
                entry = {str(token): {"logprob": UNLIKELY, "rank": 2}, **entry}
            found.append(entry)
        return found
