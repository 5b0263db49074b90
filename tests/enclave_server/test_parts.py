"""`Attested-Disclosure: 1`: the receipt commits to each message and each choice, plain and streamed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.parts import messages_of, part_digest, part_salt, parts_digest, texts_of
from attestation.receipt import Outcome
from tests.caller import Answer, Caller
from tests.served import VLLM_SECONDS, Served
from tests.servers import MODEL, FakeEngine

DISCLOSURE = {"Attested-Disclosure": "1"}
CHAT = "/v1/chat/completions"
BODY = json.dumps(
    {
        "messages": [{"role": "system", "content": "be kind"}, {"content": "hé", "role": "user"}],
        "model": MODEL,
    },
    ensure_ascii=False,
    indent=1,
).encode()


def expected(answer: Answer, request: bytes, *texts: str) -> bytes:
    """docs/protocol.md §4, from the bytes that the client has."""
    nonce = b64url_decode(answer.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
    values = {"message": messages_of(request), "choice": [text.encode() for text in texts]}
    assert texts_of(answer.body) == values["choice"]
    return parts_digest(
        *[
            [part_digest(part_salt(nonce, kind, i), value) for i, value in enumerate(found)]
            for kind, found in values.items()
        ]
    )


@pytest.mark.parametrize("split", [False, True], ids=["whole events", "torn reads"])
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_parts(caller: Caller, engine: FakeEngine, split: bool, streamed: bool) -> None:
    """What the client can make again from its own bytes and its nonce; the engine does not hear of it."""
    engine.behaviour.split = split
    body = BODY[:-2] + b',"stream": true}' if streamed else BODY
    answer = caller.call("POST", CHAT, body, DISCLOSURE)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.parts == expected(answer, body, "You said: hé")
    assert DISCLOSURE.keys().isdisjoint(engine.requests[-1].headers)


def test_nothing_without_the_header(caller: Caller) -> None:
    """Who does not ask gets a receipt without the claim."""
    assert caller.call("POST", CHAT, BODY).receipt.parts is None


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        (CHAT, {"Attested-Disclosure": "yes"}, "invalid_disclosure"),
        ("/v1/completions", DISCLOSURE, "disclosure_unsupported"),
    ],
)
def test_refused(caller: Caller, path: str, headers: dict[str, str], code: str) -> None:
    """Another value, and a route that has no chat: named, and signed as every refusal."""
    said: dict[str, Any] = {"model": MODEL, "prompt": "hé"}
    body = BODY if path == CHAT else json.dumps(said).encode()
    answer = caller.call("POST", path, body, headers)
    assert (answer.status, answer.error) == (400, code)
    assert answer.outcome is Outcome.ERROR


def test_only_whole_answers_have_parts(caller: Caller, engine: FakeEngine) -> None:
    """An error, a stream that broke off and a request that the engine refuses commit to none."""
    engine.behaviour.error_after = 2
    answer = caller.call("POST", CHAT, BODY[:-2] + b',"stream": true}', DISCLOSURE)
    assert (answer.outcome, answer.receipt.parts) == (Outcome.ABORTED, None)
    engine.reset()
    engine.behaviour.status = 400
    answer = caller.call("POST", CHAT, b'{"model":"m"}', DISCLOSURE)
    assert (answer.outcome, answer.receipt.parts) == (Outcome.ERROR, None)


@pytest.mark.vllm
@pytest.mark.timeout(3 * VLLM_SECONDS)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
def test_real_vllm(vllm_gateway: Served, streamed: bool) -> None:
    """Two choices, as vLLM writes them: its events are laid out as the protocol says."""
    asked = {"messages": [{"role": "user", "content": "Grüße"}], "n": 2, "seed": 1, "temperature": 1.0}
    body = json.dumps({"model": "tiny", "max_tokens": 12, "stream": streamed, **asked}).encode()
    with Caller(vllm_gateway.origin, vllm_gateway.policy()) as caller:
        answer = caller.call("POST", CHAT, body, DISCLOSURE)
    assert answer.outcome is Outcome.COMPLETE
    texts = ["", ""]
    for event in [value for value in answer.events if value != "[DONE]"] if streamed else [answer.json]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta" if streamed else "message"].get("content") or ""
    assert all(texts)
    assert answer.receipt.parts == expected(answer, body, *texts)
