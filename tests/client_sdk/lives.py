"""A user's program, as `program.py`: what becomes of clients, streams and answers over a program's life."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import openai

import client_sdk
from tests.client_sdk.program import ASKED, make, make_async, serve

left: list[Any] = []  # what nobody closes


def said(client: Any) -> Any:
    return client.chat.completions.create(**ASKED).choices[0].message.content


def left_open(url: str, policy: str) -> Any:
    client = make(url, policy)
    stream = client.chat.completions.create(stream=True, **ASKED)
    left.extend([client, stream, next(iter(stream))])
    return said(client)


def forked(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        said(client)
        if not (pid := os.fork()):
            status = 1
            try:
                status = 0 if said(client) else 2
            finally:
                os._exit(status)
        return [os.waitpid(pid, 0)[1], said(client)]


def abandoned(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        counts = set()
        gc.freeze()  # it is looked for among what comes now
        for _ in range(20):
            for _chunk in client.chat.completions.create(stream=True, **ASKED):
                break
            gc.collect()
            counts.add(len(os.listdir("/proc/self/fd")))  # noqa: PTH208
        gc.unfreeze()
        return [max(counts) - min(counts) < 10, said(client)]


def copies(url: str, policy: str) -> Any:
    with make(url, policy) as client, client_sdk.AttestedClient(policy) as other:
        return [said(copy.copy(client)), said(client.copy(http_client=other)), said(client.with_options())]


def another_http_client(url: str, policy: str) -> Any:
    with make(url, policy) as client, openai.DefaultHttpxClient() as other:
        return client.with_options(http_client=other)


def another_address(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        client.base_url = url.replace("https://", "http://")
        return said(client)


def hooked(url: str, policy: str) -> Any:
    seen: list[Any] = []
    hooks: Any = {
        "request": [lambda r: seen.append(r.headers["X-Mine"])],
        "response": [lambda r: seen.append(r.status_code)],
    }
    with client_sdk.AttestedClient(policy, event_hooks=hooks, headers={"X-Mine": "a"}) as http_client:
        client = client_sdk.OpenAI(base_url=url, http_client=http_client, api_key=lambda: "secret-key")
        return [said(client), seen]


def named_by_environment(url: str, policy: str) -> Any:
    os.environ |= {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "secret-key"}
    with client_sdk.OpenAI(policy=policy) as client:
        return said(client)


def files(url: str, policy: str) -> Any:
    with make(url, policy) as client, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.wav"
        file.write_bytes(b"RIFF" * 9)
        with file.open("rb") as opened:
            given: tuple[Any, ...] = (io.BytesIO(b"RIFF"), file, opened, ("b.wav", b"RIFF", "audio/wav"))
            create = client.audio.transcriptions.create
            answers = [create(model="fake-model", file=sound) for sound in given]
        receipts = [client_sdk.attestation_of(answer).receipt for answer in answers]
        return [receipt and str(receipt.outcome) for receipt in receipts]


def pages(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        page = client.models.list()
        return [page.has_next_page(), [m.id for p in page.iter_pages() for m in p.data]]


def kept_elsewhere(url: str, policy: str) -> Any:
    with make(url, policy) as client:
        answer = client.chat.completions.create(**ASKED)
        (chunk, *_) = client.chat.completions.create(stream=True, **ASKED)
        others = [pickle.loads(pickle.dumps(x)) == x for x in (answer, chunk)]  # noqa: S301
        return [*others, copy.deepcopy(answer) == answer, answer.model_copy(deep=True) == answer]


def refused_elsewhere(url: str, policy: str) -> Any:
    try:
        with make(url, "[tdx]\n") as client:
            return said(client)
    except client_sdk.AttestationError as error:
        again = pickle.loads(pickle.dumps(error))  # noqa: S301
        return [type(again) is type(error), str(again) == str(error), again.check == error.check]


def helper(url: str, policy: str) -> Any:
    with make(url, policy) as client, client.chat.completions.stream(**ASKED) as stream:
        stream.until_done()
        return stream.get_final_completion().choices[0].message.content


async def given_up(url: str, policy: str) -> Any:
    async with make_async(url, policy) as client:

        async def read() -> None:
            async with await client.chat.completions.create(stream=True, **ASKED) as stream:
                async for _ in stream:
                    reading.set()
                    await asyncio.sleep(60)

        reading = asyncio.Event()
        task = asyncio.ensure_future(read())
        await reading.wait()
        task.cancel()
        ended = await asyncio.gather(task, return_exceptions=True)
        answer = await client.chat.completions.create(**ASKED)
        return [type(ended[0]).__name__, answer.choices[0].message.content]


if __name__ == "__main__":
    serve(globals())
