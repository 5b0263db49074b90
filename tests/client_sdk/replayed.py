"""Answers of an engine that tells its tokens, as a client would have saved them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from attestation.bundle import SavedExchange
from client_sdk.replay.answer import digest_of, read_choices
from client_sdk.replay.comparing import Recorded, read_recorded
from client_sdk.replay.terms import terms_of
from tests.attestation.test_receipt import NONCE, RECEIPT

CHAT = "/v1/chat/completions"
PROMPT, OUTPUT = (5, 6, 7), (11, 12, 13, 14)
FLOAT32, HALVED = terms_of(["--dtype=float32"]), terms_of(["--dtype=bfloat16"])
GREEDY = {"temperature": 0, "seed": None}
SEEDED = {"temperature": 1, "seed": 7}
STATEMENT: Any = SimpleNamespace(
    model=SimpleNamespace(digest=b"\x01" * 32),
    engine=SimpleNamespace(name="vllm", version="0.32.0", flags=("--dtype=float32",)),
)


def plain(
    *outputs: Sequence[int], prompt: Sequence[int] = PROMPT, logprobs: Sequence[float] | None = None
) -> bytes:
    """A chat's answer."""
    told = {"logprobs": {"content": [{"logprob": value} for value in logprobs]}} if logprobs else {}
    choices = [{"index": i, "token_ids": list(ids), **told} for i, ids in enumerate(outputs)]
    return json.dumps({"prompt_token_ids": list(prompt), "choices": choices}).encode()


def streamed(*outputs: Sequence[int]) -> bytes:
    """The same as a stream of a completion: one token at a time, the choices mixed, and a usage event."""
    events: list[Any] = [
        {"choices": [{"index": i, "token_ids": [], "prompt_token_ids": list(PROMPT)}]}
        for i in range(len(outputs))
    ]
    for at in range(max(map(len, outputs))):
        for i, ids in enumerate(outputs):
            events.append({"choices": [{"index": i, "token_ids": list(ids[at : at + 1])}]})
    events.append({"choices": [], "usage": {}})
    return b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in events) + b"data: [DONE]\n\n"


def recorded(answer: bytes = b"", sampling: Any = None, path: str = CHAT, **request: Any) -> Recorded:
    """An exchange whose receipt holds."""
    answer = answer or plain(OUTPUT)
    choices = read_choices(answer)
    receipt = replace(
        RECEIPT,
        request=replace(RECEIPT.request, path=path),
        sampling=GREEDY if sampling is None else sampling,
        tokens=digest_of(choices, NONCE),
    )
    body = json.dumps({"model": "m", **request}).encode()
    saved = SavedExchange(receipt="", nonce=NONCE, request=body, response=answer)
    return read_recorded(receipt, saved, STATEMENT)
