"""Checkpoints between the real gateway and OpenAI's client: sent, proven, skipped by whoever does not know them."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.receipt import COMMENT, Outcome
from client_sdk import AsyncOpenAI, OpenAI
from client_sdk.openai import LIBRARY
from tests.caller import Caller, untrusting
from tests.client_sdk.apart import one_by_one
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
CHANNELS = pytest.mark.parametrize("channel", ["pinned", "sealed+pinned"])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway]]:
    """A gateway that signs every third event."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, checkpoint_events=3) as gateway,
    ):
        yield engine, gateway


@pytest.fixture
def engine(rig: tuple[FakeEngine, LiveGateway]) -> Iterator[FakeEngine]:
    rig[0].reset()
    with one_by_one(rig[0], chunks=8):
        yield rig[0]


@pytest.fixture
def gateway(rig: tuple[FakeEngine, LiveGateway], engine: FakeEngine) -> LiveGateway:
    return rig[1]


def read_blocking(gateway: LiveGateway, **how: Any) -> tuple[list[Any], Any]:
    client: Any
    with OpenAI(base_url=gateway.url, policy=gateway.policy_text, api_key="k", **how) as client:
        stream = client.chat.completions.create(**ASKED)
        return list(stream), stream.response.extensions["attestation"]


def read_async(gateway: LiveGateway, **how: Any) -> tuple[list[Any], Any]:
    async def work() -> tuple[list[Any], Any]:
        client: Any
        async with AsyncOpenAI(
            base_url=gateway.url, policy=gateway.policy_text, api_key="k", **how
        ) as client:
            stream = await client.chat.completions.create(**ASKED)
            return [chunk async for chunk in stream], stream.response.extensions["attestation"]

    return asyncio.run(work())


READ = pytest.mark.parametrize("read", [read_blocking, read_async], ids=["blocking", "async"])


def said(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


@READ
@CHANNELS
def test_before_use_hands_over_nothing_provisional(gateway: LiveGateway, read: Any, channel: str) -> None:
    """Every chunk is attested when it is handed over, and the answer is whole."""
    chunks, attestation = read(gateway, channel=channel, verify="before_use")
    assert said(chunks) == "You said: hello"
    assert all(chunk.attested is True for chunk in chunks)
    assert "attested" not in chunks[0].to_dict()
    assert attestation.receipt.checkpoints == 3


@READ
@CHANNELS
def test_as_you_read_marks_what_is_provisional(gateway: LiveGateway, read: Any, channel: str) -> None:
    """The first chunk waits for nothing, so it is not proven yet; once the stream has ended everything is."""
    chunks, attestation = read(gateway, channel=channel)
    assert said(chunks) == "You said: hello"
    assert chunks[0].attested is False
    assert attestation.attested
    assert attestation.receipt.outcome is Outcome.COMPLETE


def test_checkpoints_on_the_wire(gateway: LiveGateway, engine: FakeEngine) -> None:
    """Every third event is followed by a checkpoint, and [DONE] only by the receipt; without checkpoints it is the engine's stream."""
    with Caller(gateway.origin, gateway.policy_text) as caller:
        wire = b"".join(caller.stream("/v1/chat/completions", ASKED))
        blocks = wire.removesuffix(b"\n\n").split(b"\n\n")
        assert [at for at, block in enumerate(blocks) if block.startswith(COMMENT)] == [3, 7, 11, 14]
        assert blocks[-2] == b"data: [DONE]"
        answer = caller.chat("hello", stream=True)
        assert answer.receipt.checkpoints == 3
        engine.behaviour.chunks = 1
        assert caller.chat("hello", stream=True).receipt.checkpoints == 1
        assert caller.get("/v1/models").receipt.checkpoints == 0


def test_an_aborted_stream_has_its_checkpoints(gateway: LiveGateway, engine: FakeEngine) -> None:
    """An engine that dies in mid-stream: the receipt says aborted, and how many checkpoints came before it."""
    engine.behaviour.die_after = 7
    with Caller(gateway.origin, gateway.policy_text) as caller:
        receipt = caller.chat("hello", stream=True).receipt
    assert (receipt.outcome, receipt.checkpoints) == (Outcome.ABORTED, 2)
    client: Any
    with OpenAI(base_url=gateway.url, policy=gateway.policy_text, api_key="k", verify="before_use") as client:
        got = []
        with pytest.raises((openai.APIError, AttestationError)):
            got.extend(client.chat.completions.create(**ASKED))


def test_checkpoints_by_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A stream is signed when so much time has passed, and not before its end when less has."""
    for seconds, checkpoints in ((0.1, range(1, 8)), (600, range(1))):
        folder = tmp_path_factory.mktemp("timed")
        with (
            FakeEngine(folder / "engine.sock") as engine,
            live_gateway(folder, engine=engine, checkpoint_seconds=seconds) as gateway,
            Caller(gateway.origin, gateway.policy_text) as caller,
        ):
            engine.behaviour.delay = 0.06
            assert caller.chat("hello", stream=True).receipt.checkpoints in checkpoints


def test_openais_own_client_skips_them(gateway: LiveGateway) -> None:
    """A client that knows nothing of attestation reads the stream as if there were no checkpoints."""
    plain: Any
    insecure = importlib.import_module(LIBRARY).Client(verify=untrusting(), trust_env=False)
    with openai.OpenAI(base_url=gateway.url, api_key="k", http_client=insecure) as plain:
        chunks = list(plain.chat.completions.create(**ASKED))
    assert said(chunks) == "You said: hello"
    with httpx.Client(verify=untrusting(), trust_env=False) as raw:
        text = raw.post(gateway.url + "/chat/completions", json=ASKED).text
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert len([json.loads(part) for part in data[:-1]]) == len(chunks)


@pytest.mark.parametrize("kind", [OpenAI, AsyncOpenAI])
@pytest.mark.parametrize("value", [False, None, "never", "sometimes"])
def test_there_is_no_way_not_to_verify(gateway: LiveGateway, kind: Any, value: Any) -> None:
    """`verify` chooses when, and nothing turns it off."""
    with pytest.raises(TypeError):
        kind(base_url=gateway.url, policy=gateway.policy_text, api_key="k", verify=value)


def test_an_event_changed_in_mid_stream(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The checkpoint after a changed event raises while the stream still runs, in OpenAI's client."""

    def wrap(app: Any) -> Any:
        async def meddled(scope: Any, receive: Any, send: Any) -> None:
            async def changed(message: dict[str, Any]) -> None:
                if b"You" in message.get("body", b""):
                    message = {**message, "body": message["body"].replace(b"You", b"Yes")}
                await send(message)

            await app(scope, receive, changed if scope["type"] == "http" else send)

        return meddled

    folder, got = tmp_path_factory.mktemp("changed"), []
    client: Any
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=wrap, checkpoint_events=3) as gateway,
    ):
        engine.behaviour.delay, engine.behaviour.hang_after = 0.01, 5
        with (
            OpenAI(base_url=gateway.url, policy=gateway.policy_text, api_key="k", channel="pinned") as client,
            pytest.raises(AttestationError) as caught,
        ):
            got.extend(client.chat.completions.create(**ASKED))
    assert caught.value.check is Check.RECEIPT_RESPONSE
    assert len(got) <= 5
