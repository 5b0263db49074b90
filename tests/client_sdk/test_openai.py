"""OpenAI's classes, verified: the same program under openai 3.x (httpx2) and 2.x (httpx), blocking and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from client_sdk import AsyncAttestedClient, AsyncOpenAI, AttestedClient, OpenAI
from tests.client_sdk.conftest import Recorded
from tests.client_sdk.running import VERSIONS, Run, running
from tests.servers import FakeEngine, LiveGateway

POLICY = "[tdx]\n"


@pytest.fixture(scope="module", params=VERSIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs cases of `program.py` under a version of openai."""
    with running(request.param, "program", tmp_path_factory.mktemp("program")) as call:
        yield call


SAID = "You said: hello you there"
WORKS = {
    "plain": SAID,
    "streamed": [SAID, "complete"],
    "marked": [False, True, False],
    "raw": [SAID, "complete"],
    "streaming_response": ["data: [DONE]", "complete"],
    "streaming_plain_response": ["fake-model", "complete"],
    "models": ["fake-model"],
    "completions": "You said: hello",
    "copied": ["OpenAI", SAID],
    "own_http_client": SAID,
    "shared_http_client_by_itself": "fake-model",
    "proven_plain": ["complete", True, False],
    "proven_stream": [None, False, "complete"],
    "proven_raw": [True, "complete", False],
    "proven_streaming_response": [True, "complete"],
    "proven_helper": [SAID, "complete"],
    "proven_error": "error",
    "proven_others": ["complete", "no attested client gave out this str"],
    "async_proven": [["complete"] * 4, True, 0],
    "async_plain": SAID,
    "async_streamed": [SAID, "complete"],
    "async_marked": [False, True, False],
    "async_raw": [SAID, "complete"],
    "async_streaming_response": ["data: [DONE]", "complete"],
    "async_copied": ["AsyncOpenAI", ["fake-model"]],
}


def test_every_way_to_ask(run: Run, gateway: LiveGateway) -> None:
    """Each gives what openai's own class would, and a verified receipt.

    A refusal by the gateway, once its receipt is verified, is the error that openai's class raises for it; and a WebSocket,
    which is not attested, is not opened.
    """
    refused = ("websocket", "async_websocket")
    answers = run(gateway.url, gateway.policy_text, *WORKS, *refused, "own_error")
    assert {answers.pop(case).get("check") for case in refused} == {"channel.unprotected"}
    assert answers.pop("own_error")["openai"] == "NotFoundError"
    assert answers == {case: {"result": expected} for case, expected in WORKS.items()}


def test_a_refusal_arrives_at_once_and_as_it_is(run: Run, recorded: Recorded) -> None:
    """Not retried, not wrapped in `APIConnectionError`, not hidden behind anything; the enclave saw one question each."""
    cases = ("plain", "streamed", "raw", "async_plain", "async_streamed", "own_http_client")
    answers = run(recorded.gateway.url, POLICY, *cases)
    refusal = {"error": "VerificationError", "check": "tdx.root", "cause": "None"}
    assert answers == dict.fromkeys(cases, refusal)
    assert recorded.recorder.paths == ["/.well-known/attestation"] * len(cases)


def test_an_aborted_stream_raises_the_engines_error(
    run: Run, gateway: LiveGateway, engine: FakeEngine
) -> None:
    """The client raises what the gateway or the engine said, as it does for any error event."""
    cases = ("aborted", "async_aborted")
    engine.behaviour.error_after = 2
    answers = run(gateway.url, gateway.policy_text, *cases)
    said = {"openai": "APIError", "message": "EngineCore encountered an issue."}
    assert answers == dict.fromkeys(cases, said)
    engine.behaviour.error_after, engine.behaviour.die_after = None, 2
    answers = run(gateway.url, gateway.policy_text, *cases)
    assert {answer["openai"] for answer in answers.values()} == {"APIError"}


def test_they_are_openais_classes() -> None:
    """True subclasses, with every resource."""
    assert issubclass(OpenAI, openai.OpenAI)
    assert issubclass(AsyncOpenAI, openai.AsyncOpenAI)
    with OpenAI(base_url="https://enclave/v1", policy=POLICY, api_key="k") as client:
        for resource in ("audio", "batches", "chat", "embeddings", "files", "images", "models", "responses"):
            assert getattr(client, resource)._client is client


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
def test_what_a_constructor_refuses(kind: Any) -> None:
    """No policy, two sources of trust, an unprotected URL, another HTTP client, a way to WebSockets."""
    good = {"base_url": "https://enclave/v1", "api_key": "k"}
    with pytest.raises(TypeError):
        kind(**good)
    with pytest.raises(UnavailableError):
        kind(policy="no-such-file", **good)
    other = httpx.Client() if kind is OpenAI else httpx.AsyncClient()
    unprotected: list[dict[str, Any]] = [
        {**good, "policy": POLICY, "base_url": "http://enclave/v1"},
        {**good, "http_client": other},
        {**good, "policy": POLICY, "websocket_base_url": "wss://enclave/v1"},
    ]
    for options in unprotected:
        with pytest.raises(VerificationError) as caught:
            kind(**options)
        assert caught.value.check is Check.CHANNEL_UNPROTECTED
    other.close() if isinstance(other, httpx.Client) else asyncio.run(other.aclose())


@pytest.mark.parametrize("kind", [AttestedClient, AsyncAttestedClient])
@pytest.mark.parametrize("option", ["transport", "mounts", "proxy", "verify", "cert"])
def test_an_attested_client_has_one_way_out(kind: Any, option: str) -> None:
    """Options that would lead around the attested transport are not taken."""
    with pytest.raises(TypeError):
        kind(POLICY, **{option: None})


def test_both_sources_of_trust() -> None:
    """A policy beside a client that has one would be ignored, so it is refused."""
    with AttestedClient(POLICY) as http_client, pytest.raises(TypeError):
        OpenAI(base_url="https://enclave/v1", policy=POLICY, http_client=http_client, api_key="k")
