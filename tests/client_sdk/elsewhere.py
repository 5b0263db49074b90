"""Our HTTP clients inside others' libraries, run by a test where those are: `python elsewhere.py URL POLICY WHOLE|STREAM`.

Prints one JSON object: for each library the error that its caller gets, and the refusal or failure that is behind it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from typing import Any

import httpx2
import litellm
import openai
from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled
from anthropic import Anthropic, AnthropicError
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

import client_sdk

MODEL = "fake-model"
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "the secret prompt"}]}
set_tracing_disabled(True)
litellm.suppress_debug_info = True


def ours(url: str, policy: str, streams: bool) -> None:
    with client_sdk.OpenAI(base_url=url, policy=policy, api_key="k") as client:
        answer: Any = client.chat.completions.create(stream=streams, **ASKED)
        list(answer)


def openais_own(url: str, policy: str, streams: bool) -> None:
    with openai.OpenAI(base_url=url, http_client=client_sdk.AttestedClient(policy), api_key="k") as client:
        answer: Any = client.chat.completions.create(stream=streams, **ASKED)
        list(answer)


def anthropics(url: str, policy: str, streams: bool) -> None:
    transport = client_sdk.attested_transport(policy, "httpx2", raise_as=AnthropicError)
    http_client = httpx2.Client(transport=transport)
    with Anthropic(base_url=url.removesuffix("/v1"), api_key="k", http_client=http_client) as client:
        list(client.messages.create(max_tokens=8, stream=streams, **ASKED))


def langchain(url: str, policy: str, streams: bool) -> None:
    http_client = client_sdk.AttestedClient(policy)
    model = ChatOpenAI(base_url=url, api_key="k", model=MODEL, http_client=http_client)
    list(model.stream("the secret prompt")) if streams else model.invoke("the secret prompt")


def llamaindex(url: str, policy: str, streams: bool) -> None:
    clients = {
        "http_client": client_sdk.AttestedClient(policy),
        "async_http_client": client_sdk.AsyncAttestedClient(policy),
    }
    model = OpenAILike(api_base=url, api_key="k", model=MODEL, is_chat_model=True, max_retries=1, **clients)
    asked = [ChatMessage(role="user", content="the secret prompt")]
    list(model.stream_chat(asked)) if streams else model.chat(asked)


def litellms(url: str, policy: str, streams: bool) -> None:
    with (
        client_sdk.OpenAI(base_url=url, policy=policy, api_key="k") as client,
        client_sdk.plain_refusals(),
    ):
        asked = {**ASKED, "model": f"openai/{MODEL}"}
        list(litellm.completion(client=client, stream=streams, num_retries=2, **asked))


async def litellms_async(url: str, policy: str, streams: bool) -> None:
    async with client_sdk.AsyncOpenAI(base_url=url, policy=policy, api_key="k") as client:
        with client_sdk.plain_refusals():
            asked = {**ASKED, "model": f"openai/{MODEL}"}
            answer = await litellm.acompletion(client=client, stream=streams, num_retries=2, **asked)
            [chunk async for chunk in answer]


async def agents_sdk(url: str, policy: str, streams: bool) -> None:
    async with client_sdk.AsyncOpenAI(base_url=url, policy=policy, api_key="k") as client:
        agent = Agent(name="one", model=OpenAIChatCompletionsModel(model=MODEL, openai_client=client))
        if streams:
            [event async for event in Runner.run_streamed(agent, "the secret prompt").stream_events()]
        else:
            await Runner.run(agent, "the secret prompt")


WAYS: list[Callable[[str, str, bool], Any]] = [
    ours, openais_own, anthropics, langchain, llamaindex, litellms, litellms_async, agents_sdk
]  # fmt: skip


def outcome(way: Callable[[str, str, bool], Any], url: str, policy: str, streams: bool) -> list[str]:
    """What was raised, and the check of the first of ours behind it."""
    try:
        result = way(url, policy, streams)
        if asyncio.iscoroutine(result):
            asyncio.run(result)
    except Exception as error:  # noqa: BLE001 - which one is the question
        raised: BaseException | None = error
        while raised is not None and not isinstance(raised, client_sdk.AttestationError):
            raised = raised.__cause__ or raised.__context__
        plain = isinstance(error, client_sdk.AttestationError)
        said = re.search(r"\[([a-z_.]+)\]", str(error))  # LiteLLM keeps no cause of what it retried
        check = str(raised.check) if raised else said and said[1]
        return ["plain" if plain else type(error).__name__, check or ""]
    return ["no error", ""]


if __name__ == "__main__":
    url, policy, kind = sys.argv[1:]
    found = {way.__name__: outcome(way, url, policy, kind == "STREAM") for way in WAYS}
    sys.stdout.write(json.dumps(found))
