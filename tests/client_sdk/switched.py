"""A user's program: `python switched.py URL`. The tests run it as it is, and with two lines changed.

Every kind of call is here once for a blocking client and once for an async one. Prints what came of each.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

OPTIONS: dict[str, Any] = {}
OPTIONS |= {"base_url": sys.argv[1], "api_key": "a-key", "max_retries": 2}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class City(BaseModel):
    name: str


def asked(prompt: str, **more: Any) -> Any:
    return {"model": "fake-model", "messages": [{"role": "user", "content": prompt}], **more}


def told(call: Any) -> list[str]:
    return [call.function.name, call.function.arguments]


def blocking(client: OpenAI) -> dict[str, Callable[[], Any]]:
    chat = client.chat.completions

    def streamed(**more: Any) -> list[Any]:
        stream = chat.create(**asked("hello you there", stream=True, **more))
        return [chunk.choices[0].delta.to_dict() if chunk.choices else chunk.to_dict() for chunk in stream]

    def streaming_response() -> list[str]:
        with chat.with_streaming_response.create(**asked("hello", stream=True)) as response:
            return [response.headers["Content-Type"], *response.iter_lines()]

    def helper() -> list[Any]:
        with chat.stream(**asked("hello you")) as stream:
            return [
                [event.type for event in stream],
                stream.get_final_completion().choices[0].message.content,
            ]

    def raw() -> list[Any]:
        response = chat.with_raw_response.create(**asked("hello"))
        return [response.status_code, response.parse().to_dict(), json.loads(response.text)]

    return {
        "plain": lambda: chat.create(**asked("hello")).to_dict(),
        "streamed": streamed,
        "usage": lambda: streamed(stream_options={"include_usage": True}),
        "tools": lambda: list(
            map(told, chat.create(**asked("hello", tools=[WEATHER])).choices[0].message.tool_calls or [])
        ),
        "streamed tools": lambda: streamed(tools=[WEATHER]),
        "structured": lambda: chat.parse(**asked("json", response_format=City)).choices[0].message.parsed,
        "helper": helper,
        "raw": raw,
        "streaming response": streaming_response,
        "models": lambda: [model.to_dict() for model in client.models.list()],
        "completions": lambda: client.completions.create(model="fake-model", prompt="hello").to_dict(),
        "retried": lambda: chat.create(**asked("fail twice")).choices[0].message.content,
        "not retried": lambda: client.with_options(max_retries=0).chat.completions.create(
            **asked("fail always")
        ),
        "too slow": lambda: client.with_options(timeout=0.4, max_retries=0).chat.completions.create(
            **asked("slowly")
        ),
        "too slow for one call": lambda: client.with_options(max_retries=0).chat.completions.create(
            **asked("slowly"), timeout=0.4
        ),
    }


def in_async(client: AsyncOpenAI) -> dict[str, Callable[[], Coroutine[Any, Any, Any]]]:  # noqa: C901 - a list
    chat = client.chat.completions

    async def plain() -> Any:
        return (await chat.create(**asked("hello"))).to_dict()

    async def streamed() -> list[Any]:
        stream = await chat.create(**asked("hello you there", stream=True))
        return [chunk.choices[0].delta.to_dict() async for chunk in stream]

    async def tools() -> list[Any]:
        answer = await chat.create(**asked("hello", tools=[WEATHER]))
        return list(map(told, answer.choices[0].message.tool_calls or []))

    async def structured() -> Any:
        return (await chat.parse(**asked("json", response_format=City))).choices[0].message.parsed

    async def helper() -> list[Any]:
        async with chat.stream(**asked("hello you")) as stream:
            return [[event.type async for event in stream]]

    async def raw() -> list[Any]:
        response = await chat.with_raw_response.create(**asked("hello"))
        return [response.status_code, response.parse().to_dict()]

    async def streaming_response() -> list[str]:
        async with chat.with_streaming_response.create(**asked("hello", stream=True)) as response:
            return [line async for line in response.iter_lines()]

    async def models() -> list[Any]:
        return [model.to_dict() async for model in client.models.list()]

    async def retried() -> Any:
        return (await chat.create(**asked("fail twice"))).choices[0].message.content

    async def not_retried() -> Any:
        return await client.with_options(max_retries=0).chat.completions.create(**asked("fail always"))

    async def too_slow() -> Any:
        return await client.with_options(timeout=0.4, max_retries=0).chat.completions.create(
            **asked("slowly")
        )

    cases = (
        plain,
        streamed,
        tools,
        structured,
        helper,
        raw,
        streaming_response,
        models,
        retried,
        not_retried,
        too_slow,
    )
    return {f"async {case.__name__}": case for case in cases}


def ended(error: openai.OpenAIError) -> list[Any]:
    return [type(error).__name__, getattr(error, "status_code", None), getattr(error, "code", None)]


def main() -> dict[str, Any]:
    found: dict[str, Any] = {"version": openai.__version__}
    with OpenAI(**OPTIONS) as client:
        for name, call in blocking(client).items():
            try:
                found[name] = call()
            except openai.OpenAIError as error:
                found[name] = ended(error)
    found.update(asyncio.run(main_in_async()))
    return found


async def main_in_async() -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with AsyncOpenAI(**OPTIONS) as client:
        for name, call in in_async(client).items():
            try:
                found[name] = await call()
            except openai.OpenAIError as error:
                found[name] = ended(error)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(), default=lambda value: value.model_dump(), indent=1))
