"""Every resource of OpenAI's client that the gateway serves, in each way of asking: what is given out has its attestation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk import OpenAI, attestation_of
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

SOUND = b"RIFF" + bytes(range(256)) * 400 + b"\r\n--\r\n"
RESPONSE = b'"response":{"id":"resp_1","object":"response","output":[],"status":"completed"}'
EVENTS = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0,%b}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","sequence_number":1,%b}\n\n'
) % (RESPONSE, RESPONSE)
TRANSCRIPT = b'data: {"type":"transcript.text.delta","delta":"Hello"}\n\ndata: [DONE]\n\n'


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway, OpenAI]]:
    """A gateway, and one client for all."""
    folder = tmp_path_factory.mktemp("resources")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine) as gateway,
        OpenAI(base_url=gateway.url, policy=gateway.policy_text, api_key="none", max_retries=0) as client,
    ):
        yield engine, gateway, client


def _responses(client: OpenAI) -> Any:
    return client.responses.create(model=MODEL, input="hello")


def _parsed_response(client: OpenAI) -> Any:
    return client.responses.parse(model=MODEL, input="hello")


def _raw_response(client: OpenAI) -> Any:
    return client.responses.with_raw_response.create(model=MODEL, input="hello")


def _embeddings(client: OpenAI) -> Any:
    return client.embeddings.create(model=MODEL, input="hello", encoding_format="float")


def _raw_embeddings(client: OpenAI) -> Any:
    return client.embeddings.with_raw_response.create(model=MODEL, input="hello", encoding_format="float")


def _transcription(client: OpenAI) -> Any:
    return client.audio.transcriptions.create(model=MODEL, file=("a.wav", SOUND))


def _raw_transcription(client: OpenAI) -> Any:
    return client.audio.transcriptions.with_raw_response.create(
        model=MODEL, file=("a.wav", SOUND), response_format="text"
    )


def _parsed_chat(client: OpenAI) -> Any:
    return client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "hello"}], extra_body={}
    )


PLAIN: list[Callable[[OpenAI], Any]] = [
    _responses,
    _parsed_response,
    _raw_response,
    _embeddings,
    _raw_embeddings,
    _transcription,
    _raw_transcription,
    _parsed_chat,
]


@pytest.mark.parametrize("ask", PLAIN, ids=lambda ask: ask.__name__.strip("_"))
def test_plain(rig: tuple[FakeEngine, LiveGateway, OpenAI], ask: Callable[[OpenAI], Any]) -> None:
    """`.attestation`, and `attestation_of` for type checkers, whatever the resource."""
    engine, _, client = rig
    engine.reset()
    answer = ask(client)
    proof = attestation_of(answer)
    assert answer.attestation is proof
    assert proof.receipt is not None
    assert proof.receipt.outcome == "complete"
    assert proof.receipt.request.length == len(engine.requests[-1].body)


def _streamed_response(client: OpenAI) -> Any:
    return client.responses.create(model=MODEL, input="hello", stream=True)


def _streamed_transcription(client: OpenAI) -> Any:
    return client.audio.transcriptions.create(model=MODEL, file=("a.wav", SOUND), stream=True)


STREAMED = [(_streamed_response, EVENTS), (_streamed_transcription, TRANSCRIPT)]


@pytest.mark.parametrize(("ask", "events"), STREAMED, ids=lambda v: getattr(v, "__name__", ""))
def test_streams(
    rig: tuple[FakeEngine, LiveGateway, OpenAI], ask: Callable[[OpenAI], Any], events: bytes
) -> None:
    """The same for streams, once they have been read."""
    engine, _, client = rig
    engine.reset()
    engine.behaviour.raw_stream = events
    with ask(client) as stream:
        read = list(stream)
    assert [event.attested for event in read] == [False] * len(
        read
    )  # the receipt comes after the last of them
    assert stream.attestation.receipt.outcome == "complete"


def test_the_helper_of_responses(rig: tuple[FakeEngine, LiveGateway, OpenAI]) -> None:
    """`responses.stream()` gives events, and what proves them."""
    engine, _, client = rig
    engine.reset()
    engine.behaviour.raw_stream = EVENTS
    with client.responses.stream(model=MODEL, input="hello") as stream:
        kinds = [event.type for event in stream]
    assert kinds == ["response.created", "response.completed"]
    receipt = attestation_of(stream).receipt
    assert receipt is not None
    assert receipt.outcome == "complete"


def test_a_text_has_no_place_for_it(rig: tuple[FakeEngine, LiveGateway, OpenAI], tmp_path: Path) -> None:
    """Where OpenAI's client gives out a bare text, the raw response has its proof."""
    engine, _, client = rig
    engine.reset()
    raw: Any = _raw_transcription(client)
    assert isinstance(raw.parse(), str)
    raw.attestation.save(tmp_path / "answer.json")
    assert (tmp_path / "answer.json").stat().st_size > 1000
