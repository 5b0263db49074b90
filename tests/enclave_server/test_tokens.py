"""`Attested-Replay: 1`: a digest over the token ids of an answer, which stand in the answer too."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.receipt import Outcome
from attestation.tokens import RunningTokens
from enclave_server.asgi import fields_of
from enclave_server.errors import ApiError
from enclave_server.routes import ROUTES
from enclave_server.tokens import Tokens, tokens_for
from tests.caller import Answer, Caller
from tests.fake_model import ids_of
from tests.servers import MODEL, FakeEngine

REPLAY = {"Attested-Replay": "1"}
NONCE = b"\x09" * 32


def expected(nonce: bytes, *choices: tuple[list[int], list[int]]) -> bytes:
    """docs/protocol.md §4, written down once more."""

    def hashed(ids: list[int]) -> bytes:
        return sha256(b"".join(struct.pack(">I", token) for token in ids)).digest()

    parts = [hashed(ids) for choice in choices for ids in choice]
    return sha256(b"attested-inference/tokens/v1\x00" + nonce + b"".join(parts)).digest()


def ask(caller: Caller, path: str, **more: Any) -> tuple[Answer, bytes]:
    """An answer with token ids, and the nonce that it was asked with."""
    said = {"messages": [{"role": "user", "content": "hé"}]} if "chat" in path else {"prompt": "hé"}
    answer = caller.post(path, {"model": MODEL, **said, **more}, REPLAY)
    return answer, b64url_decode(answer.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("split", [False, True], ids=["whole events", "torn reads"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_digest(caller: Caller, engine: FakeEngine, path: str, split: bool, stream: bool) -> None:
    """Plain or streamed, the receipt covers the ids of prompt and output; the client's bytes are passed on first."""
    engine.behaviour.split = split
    answer, nonce = ask(caller, path, stream=stream)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.tokens == expected(nonce, (ids_of("hé"), ids_of("You said: hé")))
    assert b"token_ids" in answer.body
    assert engine.requests[-1].body.endswith(b',"return_token_ids":true}')


def test_nothing_without_the_header(caller: Caller, engine: FakeEngine) -> None:
    """Other requests pass as they are and have no digest, also when they ask for ids themselves."""
    for more in ({}, {"return_token_ids": True}):
        answer = caller.chat("hi", **more)
        assert answer.receipt.tokens is None
        assert json.loads(engine.requests[-1].body).get("return_token_ids") == more.get("return_token_ids")


def test_asked_for_twice(caller: Caller, engine: FakeEngine) -> None:
    """A request that asks for ids itself is not changed; one that declines them is refused."""
    answer, _ = ask(caller, "/v1/completions", return_token_ids=True)
    assert answer.receipt.tokens is not None
    assert engine.requests[-1].body.count(b"return_token_ids") == 1
    answer, _ = ask(caller, "/v1/completions", return_token_ids=False)
    assert (answer.status, answer.error) == (400, "invalid_replay")


@pytest.mark.parametrize("value", ["0", "true", "", "1, 1"])
def test_header(caller: Caller, value: str) -> None:
    """Anything but 1 is refused, with a receipt."""
    answer = caller.post("/v1/completions", {"model": MODEL, "prompt": "x"}, {"Attested-Replay": value})
    assert (answer.status, answer.error, answer.outcome) == (400, "invalid_replay", Outcome.ERROR)
    assert answer.receipt.sampling["temperature"] == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": MODEL, "input": "x"}),
        ("/v1/messages", {"model": MODEL, "max_tokens": 1, "messages": []}),
        ("/v1/embeddings", {"model": MODEL, "input": "x"}),
    ],
)
def test_routes_without_ids(caller: Caller, path: str, body: Any) -> None:
    """A digest that cannot be had is refused, not left out."""
    answer = caller.post(path, body, REPLAY)
    assert (answer.status, answer.error) == (400, "replay_unsupported")


def test_no_digest_of_what_is_not_whole(caller: Caller, engine: FakeEngine) -> None:
    """An aborted stream and an error have none."""
    engine.behaviour.error_after = 3
    aborted, _ = ask(caller, "/v1/chat/completions", stream=True)
    assert (aborted.outcome, aborted.receipt.tokens) == (Outcome.ABORTED, None)
    engine.behaviour.status = 400
    error, _ = ask(caller, "/v1/chat/completions")
    assert (error.outcome, error.receipt.tokens) == (Outcome.ERROR, None)


def test_an_engine_without_ids(caller: Caller, engine: FakeEngine) -> None:
    """Where the engine keeps ids back, the receipt has no digest, and the answer stands."""
    engine.behaviour.raw_stream = b'data: {"choices":[{"index":0,"text":"x"}]}\n\ndata: [DONE]\n\n'
    answer, _ = ask(caller, "/v1/completions", stream=True)
    assert (answer.outcome, answer.receipt.tokens) == (Outcome.COMPLETE, None)


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 2**32 - 1), max_size=4)), max_size=8))
def test_any_order(pieces: list[tuple[int, list[int]]]) -> None:
    """However the choices of a stream are mixed, the digest is that of each one's ids in order; a gap gives none."""
    running, outputs = RunningTokens(), dict[int, list[int]]()
    for choice, ids in pieces:
        running.output(choice, ids)
        outputs[choice] = outputs.get(choice, []) + ids
    assert running.digest(NONCE) is None
    running.prompt([7])
    running.prompt([8], choice=0)
    whole = sorted(outputs) == list(range(len(outputs))) and bool(outputs)
    choices = [([8] if choice == 0 else [7], outputs.get(choice, [])) for choice in range(len(outputs))]
    assert running.digest(NONCE) == (expected(NONCE, *choices) if whole else None)


@given(st.binary(max_size=100))
def test_any_answer(body: bytes) -> None:
    """Any bytes of an engine give a digest or none."""
    for data in (body, b'{"choices":' + body + b"}", b'{"choices":[{"token_ids":' + body + b"}]}"):
        tokens = Tokens()
        tokens.plain(data)
        tokens.events(b"data: " + data + b"\n\n")
        tokens.digest(NONCE)


@given(st.lists(st.tuples(st.just(b"attested-replay"), st.binary(max_size=3)), max_size=3))
def test_any_header(headers: list[tuple[bytes, bytes]]) -> None:
    """One header that says 1, none, or a refusal."""
    with suppress(ApiError):
        found = tokens_for(fields_of(headers), ROUTES[b"/v1/completions"])
        assert (found is not None) == bool(headers)


@pytest.mark.parametrize("bad", [-1, 2**32, 1.5, True, "1", None])
def test_ids_that_are_none(bad: object) -> None:
    """An id that does not fit into 4 bytes is not hashed as another one."""
    tokens = Tokens()
    tokens.plain(json.dumps({"prompt_token_ids": [1], "choices": [{"token_ids": [1, bad]}]}).encode())
    assert tokens.digest(NONCE) is None
