"""A user's program, run by `test_openai.py` under openai 2.x and 3.x: `python -m tests.compat.openai_program URL POLICY MODEL sync|async CASE…`.

Every case is written once, for both kinds of client. Prints one JSON object: what each case returned.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import openai
from pydantic import BaseModel

import client_sdk

MODEL = "set by main"
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Get the current weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


class Colour(BaseModel):
    """A small shape for a structured answer."""

    red: bool
    name: str


def asked(text: str = "Say hello.", **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 12,
        **more,
    }


async def got(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


async def models(client: Any) -> Any:
    listed = [model async for model in each(await got(client.models.list()))]
    return [(await got(client.models.retrieve(model.id))).id for model in listed]


async def chat(client: Any) -> Any:
    answer = await got(client.chat.completions.create(**asked()))
    return [
        bool(answer.choices[0].message.content),
        answer.usage.completion_tokens,
        str(answer.attestation.receipt.outcome),
    ]


async def chat_streamed(client: Any) -> Any:
    """The same words as in one piece, and the tokens counted."""
    whole = await got(client.chat.completions.create(**asked()))
    stream = await got(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked())
    )
    chunks = [chunk async for chunk in each(stream)]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    return [text == whole.choices[0].message.content, chunks[-1].usage.completion_tokens]


async def helper_streamed(client: Any) -> Any:
    """Through openai's own helper, which puts the chunks together."""
    manager = client.chat.completions.stream(**asked(stop=["!", "."]))
    if hasattr(manager, "__aenter__"):
        async with manager as stream:
            final = await stream.get_final_completion()
    else:
        with manager as stream:
            final = stream.get_final_completion()
    return final.choices[0].finish_reason


async def tool_named(client: Any) -> Any:
    answer = await got(
        client.chat.completions.create(
            **asked("Weather in Paris?", tools=TOOLS, tool_choice=NAMED, max_tokens=64)
        )
    )
    [call] = answer.choices[0].message.tool_calls
    return [call.function.name, json.loads(call.function.arguments)]


async def tool_streamed(client: Any) -> Any:
    """A call in pieces, which make JSON together."""
    stream = await got(
        client.chat.completions.create(
            stream=True,
            **asked(
                "Weather in Paris?",
                tools=TOOLS,
                tool_choice="required",
                parallel_tool_calls=False,
                max_tokens=64,
            ),
        )
    )
    deltas = [
        call
        async for chunk in each(stream)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or []
    ]
    return [deltas[0].function.name, json.loads("".join(d.function.arguments or "" for d in deltas))]


async def tools_parallel(client: Any) -> Any:
    """Several calls in one answer, each with an id of its own. The small model would stop after one, and may not."""
    answer = await got(
        client.chat.completions.create(
            extra_body={"min_tokens": 100},
            **asked("Weather in Paris and Rome?", tools=TOOLS, tool_choice="required", max_tokens=256),
        )
    )
    calls = answer.choices[0].message.tool_calls
    return [
        len(calls) > 1,
        len({call.id for call in calls}) == len(calls),
        {call.function.name for call in calls} == {"weather"},
    ]


async def tool_results(client: Any) -> Any:
    """The results of two calls go back, and the model answers in words."""
    calls = [
        {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city})},
        }
        for n, city in enumerate(("Paris", "Rome"))
    ]
    messages = [
        {"role": "user", "content": "Weather in Paris and Rome?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in calls),
    ]
    answer = await got(
        client.chat.completions.create(**asked(tools=TOOLS, tool_choice="none") | {"messages": messages})
    )
    return [bool(answer.choices[0].message.content), answer.choices[0].message.tool_calls]


async def structured(client: Any) -> Any:
    answer = await got(
        client.chat.completions.parse(
            response_format=Colour, **asked("Describe the colour red.", max_tokens=128)
        )
    )
    return type(answer.choices[0].message.parsed).__name__


async def json_mode(client: Any) -> Any:
    answer = await got(
        client.chat.completions.create(
            response_format={"type": "json_object"}, **asked("A JSON object.", max_tokens=8)
        )
    )
    return answer.choices[0].message.content.lstrip()[0]


async def logprobs(client: Any) -> Any:
    answer = await got(client.chat.completions.create(logprobs=True, top_logprobs=3, **asked(max_tokens=4)))
    return [len(token.top_logprobs) for token in answer.choices[0].logprobs.content]


async def choices(client: Any) -> Any:
    answer = await got(client.chat.completions.create(**asked(n=3, seed=7, temperature=1, max_tokens=4)))
    again = await got(client.chat.completions.create(**asked(n=3, seed=7, temperature=1, max_tokens=4)))
    return [
        len(answer.choices),
        [c.message.content for c in answer.choices] == [c.message.content for c in again.choices],
    ]


async def stop(client: Any) -> Any:
    answer = await got(
        client.chat.completions.create(**asked("Count: 1, 2, 3, 4, 5, 6", stop=[","], max_tokens=32))
    )
    return [answer.choices[0].finish_reason, "," in answer.choices[0].message.content]


async def completions(client: Any) -> Any:
    answer = await got(
        client.completions.create(model=MODEL, prompt=["One", "Two"], max_tokens=4, logprobs=1, echo=False)
    )
    stream = await got(
        client.completions.create(model=MODEL, prompt="One", max_tokens=4, temperature=0, stream=True)
    )
    text = "".join([choice.text async for chunk in each(stream) for choice in chunk.choices])
    return [len(answer.choices), len(answer.choices[0].logprobs.tokens), bool(text)]


async def responses(client: Any) -> Any:
    answer = await got(
        client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0)
    )
    stream = await got(
        client.responses.create(
            model=MODEL, input="Say hello.", max_output_tokens=16, temperature=0, stream=True
        )
    )
    events = [event async for event in each(stream)]
    done = events[-1]
    return [
        events[0].type,
        done.type,
        done.response.output_text == answer.output_text,
        answer.usage.output_tokens,
    ]


async def responses_structured(client: Any) -> Any:
    answer = await got(
        client.responses.parse(
            model=MODEL,
            input="Describe the colour red.",
            text_format=Colour,
            max_output_tokens=128,
            temperature=0,
        )
    )
    return type(answer.output_parsed).__name__


async def responses_tool(client: Any) -> Any:
    function = TOOLS[0]["function"]
    answer = await got(
        client.responses.create(
            model=MODEL,
            input="Weather in Paris?",
            tools=[{"type": "function", **function}],
            tool_choice={"type": "function", "name": "weather"},
            max_output_tokens=64,
            temperature=0,
        )
    )
    calls = [item for item in answer.output if item.type == "function_call"]
    return [calls[0].name, json.loads(calls[0].arguments)]


async def error_of(awaited: Any) -> Any:
    """The class and the status that a program sees, and whether the error's own receipt was there to be checked."""
    try:
        await got(awaited())
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, "attestation" in error.response.extensions]
    return "no error"


async def errors(client: Any) -> Any:
    create = client.chat.completions.create
    return [
        await error_of(lambda: create(**asked() | {"model": "another"})),
        await error_of(lambda: create(**asked(max_tokens=10_000_000))),
        await error_of(lambda: create(extra_body={"priority": 9}, **asked())),
        await error_of(lambda: create(**asked() | {"messages": "x"})),
        await error_of(lambda: client.embeddings.create(model=MODEL, input="x")),
        await error_of(lambda: client.images.generate(model=MODEL, prompt="x")),
        await error_of(lambda: client.responses.retrieve("resp_0")),
    ]


async def run(url: str, policy: str, kind: str, cases: list[str]) -> dict[str, Any]:
    cls = client_sdk.OpenAI if kind == "sync" else client_sdk.AsyncOpenAI
    client: Any = cls(base_url=url, policy=policy, api_key="unused", max_retries=0, timeout=180)
    try:
        return {case: await globals()[case](client) for case in cases}
    finally:
        await got(client.close())


if __name__ == "__main__":
    url, policy, MODEL, kind, *cases = sys.argv[1:]
    sys.stdout.write(
        json.dumps({"version": openai.__version__, **asyncio.run(run(url, policy, kind, cases))})
    )
