"""Anthropic's own client against /v1/messages of the gateway with real vLLM, on the verifying HTTP client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from client_sdk import AttestedClient
from tests.compat.conftest import MODEL, Chat
from tests.served import VLLM_SECONDS

anthropic = pytest.importorskip("anthropic", reason="`make test-compat` has Anthropic's client")

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(2 * VLLM_SECONDS)]

WEATHER = {
    "name": "weather",
    "description": "Get the current weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(chat: Chat) -> Iterator[Any]:
    with AttestedClient(chat.policy_file, timeout=180) as http:
        yield anthropic.Anthropic(base_url=chat.origin, api_key="unused", http_client=http, max_retries=0)


def asked(text: str = "Say hello.", **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"model": MODEL, "max_tokens": 16, "messages": [message], "extra_body": {"temperature": 0}, **more}


def test_message(client: Any) -> None:
    """Words, with their tokens counted as the gateway's other routes count them."""
    answer = client.messages.create(**asked(system="Be brief."))
    assert answer.content[0].text
    counted = client.messages.count_tokens(model=MODEL, system="Be brief.", messages=asked()["messages"])
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (counted.input_tokens, 16)


def test_stream(client: Any) -> None:
    """The client's own helper puts the events together to the words of the plain answer."""
    with client.messages.stream(**asked()) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == client.messages.create(**asked()).content[0].text


@pytest.mark.parametrize(
    "choice", [{"type": "tool", "name": "weather"}, {"type": "any"}], ids=["named", "any"]
)
def test_tool(client: Any, choice: Any) -> None:
    """A completed tool call, with its input parsed."""
    answer = client.messages.create(
        **asked("Weather in Paris?", tools=[WEATHER], tool_choice=choice, max_tokens=64)
    )
    [call] = [block for block in answer.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("weather", {"city": "Paris"})


def test_gateways_errors(client: Any) -> None:
    """What the gateway refuses has the class and the type that this client's users look at."""
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**asked(extra_body={"priority": 9}))
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.batches.list()
    assert unknown.value.type == "not_found_error"


def test_engines_errors(client: Any) -> None:
    """What vLLM refuses keeps vLLM's words, and has the right class."""
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**asked() | {"model": "another"})
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**asked(max_tokens=1_000_000))
