"""A user's program, run by tests under openai 2.x and 3.x. It reads a line `["URL", "POLICY", "CASE"…]` and prints one, until
its input ends: a JSON object of what each case returned or the error it ended with.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai

import client_sdk

ASKED: Any = {"model": "fake-model", "messages": [{"role": "user", "content": "hello you there"}]}


def make(url: str, policy: str, **options: Any) -> Any:
    return client_sdk.OpenAI(base_url=url, policy=policy, api_key="secret-key", **options)


def make_async(url: str, policy: str, **options: Any) -> Any:
    return client_sdk.AsyncOpenAI(base_url=url, policy=policy, api_key="secret-key", **options)


def receipt_of(response: Any) -> str:
    return str(response.extensions["attestation"].receipt.outcome)


def plain(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        return client.chat.completions.create(**ASKED).choices[0].message.content


def streamed(url: str, policy: str) -> Any:
    with make(url, policy) as client, client.chat.completions.create(stream=True, **ASKED) as stream:
        text = "".join(c.delta.content or "" for event in stream for c in event.choices)
        return [text, receipt_of(stream.response)]


def marked(url: str, policy: str) -> Any:
    with make(url, policy) as early, make(url, policy, verify="before_use") as proven:
        first = next(iter(early.chat.completions.create(stream=True, **ASKED)))
        chunks = list(proven.chat.completions.create(stream=True, **ASKED))
        return [first.attested, all(chunk.attested for chunk in chunks), "attested" in first.to_dict()]


def raw(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        response = client.chat.completions.with_raw_response.create(**ASKED)
        return [response.parse().choices[0].message.content, receipt_of(response.http_response)]


def streaming_response(url: str, policy: str) -> Any:
    with (
        make(url, policy) as client,
        client.chat.completions.with_streaming_response.create(stream=True, **ASKED) as response,
    ):
        lines = list(response.iter_lines())
        return [lines[-2], receipt_of(response.http_response)]


def streaming_plain_response(url: str, policy: str) -> Any:
    with (
        make(url, policy) as client,
        client.chat.completions.with_streaming_response.create(**ASKED) as response,
    ):
        return [json.loads(response.read())["model"], receipt_of(response.http_response)]


def proven_plain(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        answer: Any = client.chat.completions.create(**ASKED)
        same = client_sdk.attestation_of(answer) is answer.attestation
        return [str(answer.attestation.receipt.outcome), same, "attestation" in answer.to_dict()]


def proven_stream(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        stream: Any = client.chat.completions.create(stream=True, **ASKED)
        early = stream.attestation.receipt
        marks = [chunk.attested for chunk in stream]
        return [early, marks[-1], str(stream.attestation.receipt.outcome)]


def proven_raw(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        raw: Any = client.chat.completions.with_raw_response.create(**ASKED)
        streamed: Any = client.chat.completions.with_raw_response.create(stream=True, **ASKED)
        marks = [chunk.attested for chunk in streamed.parse()]
        return [
            raw.parse().attestation is raw.attestation,
            str(streamed.attestation.receipt.outcome),
            marks[0],
        ]


def proven_streaming_response(url: str, policy: str) -> Any:
    with (
        make(url, policy) as client,
        client.chat.completions.with_streaming_response.create(**ASKED) as response,
    ):
        parsed: Any = response.parse()
        return [parsed.attestation is client_sdk.attestation_of(response), receipt_of(response.http_response)]


def proven_helper(url: str, policy: str) -> Any:
    with make(url, policy) as client, client.chat.completions.stream(**ASKED) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        receipt = client_sdk.attestation_of(stream).receipt
        return [text, receipt and str(receipt.outcome)]


def proven_error(url: str, policy: str) -> Any:
    with make(url, policy, max_retries=0) as client:
        try:
            return client.get("/nothing", cast_to=object)
        except openai.APIStatusError as error:
            receipt = client_sdk.attestation_of(error).receipt
            return receipt and str(receipt.outcome)


def proven_others(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        page: Any = client.models.list()
        try:
            client_sdk.attestation_of("text")
        except TypeError as error:
            return [str(page.attestation.receipt.outcome), str(error)]


async def async_proven(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        create = client.chat.completions
        plain: Any = await create.create(**ASKED)
        stream: Any = await create.create(stream=True, **ASKED)
        marks = [chunk.attested async for chunk in stream]
        raw: Any = await create.with_raw_response.create(**ASKED)
        async with create.with_streaming_response.create(stream=True, **ASKED) as response:
            inner: Any = await response.parse()
            marks += [chunk.attested async for chunk in inner]
        found = [plain.attestation, stream.attestation, raw.parse().attestation, inner.attestation]
        return [[str(a.receipt.outcome) for a in found], raw.attestation is found[2], marks.count(True)]


def models(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        return [client.models.retrieve(model.id).id for model in client.models.list()]


def completions(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        return client.completions.create(model="fake-model", prompt="hello").choices[0].text


def copied(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        other = client.with_options(timeout=20, max_retries=0).copy(api_key="another-key")
        return [type(other).__name__, other.chat.completions.create(**ASKED).choices[0].message.content]


def own_http_client(url: str, policy: str) -> Any:
    http_client = client_sdk.AttestedClient(policy, timeout=20)
    with client_sdk.OpenAI(base_url=url, http_client=http_client, api_key="secret-key") as client:
        return client.chat.completions.create(**ASKED).choices[0].message.content


def shared_http_client_by_itself(url: str, policy: str) -> Any:
    with client_sdk.AttestedClient(policy) as http_client:
        return http_client.get(f"{url}/models").json()["data"][0]["id"]


def websocket(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        try:
            with client.realtime.connect(model="fake-model"):
                return "connected"
        except openai.OpenAIError:  # the extra is not installed; this is what it would connect to
            return str(client.websocket_base_url)


def aborted(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        return [event.id for event in client.chat.completions.create(stream=True, **ASKED)]


def own_error(url: str, policy: str) -> Any:
    with make(url, policy, max_retries=0) as client:
        return client.get("/nothing", cast_to=object)


async def async_plain(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        return (await client.chat.completions.create(**ASKED)).choices[0].message.content


async def async_streamed(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        stream = await client.chat.completions.create(stream=True, **ASKED)
        text = "".join([c.delta.content or "" async for event in stream for c in event.choices])
        return [text, receipt_of(stream.response)]


async def async_marked(url: str, policy: str) -> Any:
    async with make_async(url, policy) as early, make_async(url, policy, verify="before_use") as proven:
        marks = [c.attested async for c in await early.chat.completions.create(stream=True, **ASKED)]
        chunks = [c async for c in await proven.chat.completions.create(stream=True, **ASKED)]
        return [marks[0], all(chunk.attested for chunk in chunks), "attested" in chunks[0].to_dict()]


async def async_raw(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        response = await client.chat.completions.with_raw_response.create(**ASKED)
        return [response.parse().choices[0].message.content, receipt_of(response.http_response)]


async def async_streaming_response(url: str, policy: str) -> Any:
    async with (
        make_async(url, policy) as client,
        client.chat.completions.with_streaming_response.create(stream=True, **ASKED) as response,
    ):
        lines = [line async for line in response.iter_lines()]
        return [lines[-2], receipt_of(response.http_response)]


async def async_copied(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        other = client.with_options(timeout=20)
        return [type(other).__name__, [model.id async for model in other.models.list()]]


async def async_websocket(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        try:
            async with client.realtime.connect(model="fake-model"):
                return "connected"
        except openai.OpenAIError:
            return str(client.websocket_base_url)


async def async_aborted(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:
        return [event.id async for event in await client.chat.completions.create(stream=True, **ASKED)]


def outcome(work: Callable[[str, str], Any], url: str, policy: str) -> Any:
    try:
        result = work(url, policy)
        return {"result": asyncio.run(result) if asyncio.iscoroutine(result) else result}
    except client_sdk.AttestationError as error:
        return {"error": type(error).__name__, "check": str(error.check), "cause": repr(error.__context__)}
    except openai.OpenAIError as error:
        return {"openai": type(error).__name__, "message": str(error)}


def serve(known: dict[str, Any]) -> None:
    """Answer lines until there are no more."""
    for line in sys.stdin:
        asked, trusted, *cases = json.loads(line)
        outcomes = {case: outcome(known[case], asked, trusted) for case in cases}
        print(json.dumps({"version": openai.__version__, **outcomes}), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve(globals())
