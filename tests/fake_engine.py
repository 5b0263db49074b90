"""A small OpenAI-shaped engine on a Unix socket, in a thread. It imports nothing of the gateway, so it starts fast.

with FakeEngine(tmp_path / "engine.sock") as engine:
    ...  # engine.requests, engine.behaviour.die_after = 3
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from tests.fake_model import FakeModel, ids_of, logprobs_of, with_ids

MODEL = "fake-model"
VERSION = "0.0.0+fake"


@dataclass
class Behaviour:
    """How the fake engine answers from now on. Change it at any time; `reset()` makes it well again."""

    chunks: int = 5  # content events of a stream
    delay: float = 0.0  # seconds before each of them; what waits is let go when it is made shorter
    text: str | None = None  # the answer's text, instead of an echo of the prompt
    split: bool = False  # every stream in writes of 7 bytes, so that reads never end where events do
    die_after: int | None = (
        None  # close the connection after so many events of a stream (0: at once, plain too)
    )
    error_after: int | None = None  # vLLM's error event inside the 200 after so many events, then [DONE]
    hang_after: int | None = None  # send nothing more after so many events
    hang_on: str = ""  # ... in answers to prompts with this in them
    status: int | None = None  # answer every POST with this status and an error
    words: str | None = None  # ... which is this plain text, as routers before engines write them
    no_done: bool = False  # end the stream without [DONE]
    raw_stream: bytes | None = None  # exactly these bytes as the stream
    healthy: bool = True
    replica_away: bool = False  # as a router before several: ready, and not healthy
    version: str = VERSION
    models: Sequence[str] = (MODEL,)  # what it lists


@dataclass(frozen=True)
class Seen:
    """One request as the engine saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class _Thread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def pause(seconds: Callable[[], float]) -> None:
    """For so long; it is asked again meanwhile, so that a test decides when what waits goes on, and no clock does."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.sleep(0)
    while (left := started + seconds() - loop.time()) > 0:  # noqa: ASYNC110 - it is a thread of the test that changes it
        await asyncio.sleep(min(left, 0.02))


@dataclass
class FakeEngine:
    """Answers like vLLM, always the same for the same request, and misbehaves on request."""

    socket: Path
    behaviour: Behaviour = field(default_factory=Behaviour)
    requests: list[Seen] = field(default_factory=list)
    cancelled: int = 0  # streams and answers whose reader went away
    unready: str | None = "starting"
    restarts: int = 0
    model: FakeModel = field(default_factory=FakeModel)
    _runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._worker = _Thread()
        self._worker.run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._worker.close()

    def down(self) -> None:
        """Stop listening and drop every connection, as a crash does. Nobody has told the gateway yet."""
        if self._runner is not None:
            self._worker.run(self._runner.cleanup())
            self._runner = None
        self.socket.unlink(missing_ok=True)

    def up(self) -> None:
        """Listen again."""
        self._worker.run(self._listen())

    def reset(self) -> None:
        """As it was after its start, with nothing seen."""
        self.behaviour, self.unready = Behaviour(), None
        self.requests.clear()
        self.cancelled = 0

    async def _listen(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/health", self._health)
        app.router.add_get("/readiness", self._readiness)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/{other:.*}", self._other)
        self._runner: web.AppRunner | None = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()

    async def _health(self, _: web.Request) -> web.Response:
        how = self.behaviour
        return web.Response(status=200 if how.healthy and not how.replica_away else 503)

    async def _readiness(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.behaviour.healthy else 503)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.behaviour.version})

    async def _see(self, request: web.Request) -> dict[str, Any]:
        body = await request.read()
        self.requests.append(Seen(request.method, request.path_qs, dict(request.headers), body))
        parsed: dict[str, Any] = json.loads(body) if body else {}
        return parsed

    async def _models(self, request: web.Request) -> web.Response:
        await self._see(request)
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
            for name in self.behaviour.models
        ]
        return web.json_response({"object": "list", "data": models})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = await self._see(request)
        return await self._answer(request, asked, _prompt(asked, chat=True), chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        asked = await self._see(request)
        if asked.get("prompt_logprobs") is not None:
            return web.json_response(self.model.prefill(asked["prompt"], self._text))
        return await self._answer(request, asked, str(asked["prompt"]), chat=False)

    async def _other(self, request: web.Request) -> web.StreamResponse:
        """Any other route: a stream as told, no route when a status is told, or an answer that says nothing but what it cost."""
        body = await request.read()
        self.requests.append(Seen(request.method, request.path_qs, dict(request.headers), body))
        if self.behaviour.raw_stream is not None:
            return await self._stream(request, {}, "", {}, chat=False)
        if self.behaviour.status is not None:
            return web.json_response(
                {"detail": "Not Found"}, status=404, dumps=lambda v: json.dumps(v, separators=(",", ":"))
            )
        return web.json_response({"data": [], "usage": {"prompt_tokens": 3, "total_tokens": 3}})

    async def _answer(
        self, request: web.Request, asked: dict[str, Any], prompt: str, *, chat: bool
    ) -> web.StreamResponse:
        how = self.behaviour
        if how.status is not None:
            error = {"message": "as told", "type": "BadRequestError", "param": None, "code": how.status}
            if how.words is not None:
                return web.Response(status=how.status, text=how.words)
            return web.json_response({"error": error}, status=how.status)
        text = self._text(prompt)
        ids = bool(asked.get("return_token_ids"))
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": how.chunks}
        if ids:
            self.model.prompts.add(prompt)
            usage = {"prompt_tokens": len(prompt.encode()), "completion_tokens": len(text.encode())}
        usage["total_tokens"] = sum(usage.values())
        hangs = how.hang_after is not None and how.hang_on in prompt
        try:
            if asked.get("stream"):
                return await self._stream(request, asked, text, usage, chat=chat)
            if how.die_after is not None and request.transport is not None:
                request.transport.abort()
            await pause(lambda: 3600 if hangs else self.behaviour.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        answer = {**_head(chat, ""), "choices": [choice], "usage": usage}
        if ids:
            choice["token_ids"] = ids_of(text)
            (answer if chat else choice)["prompt_token_ids"] = ids_of(prompt)
        if asked.get("logprobs"):
            choice["logprobs"] = logprobs_of(ids_of(text), chat=chat)
        return web.json_response(answer)

    def _text(self, prompt: str) -> str:
        """What is answered to a prompt."""
        how = self.behaviour
        return how.text if how.text is not None else f"You said: {prompt}"

    async def _stream(
        self, request: web.Request, asked: dict[str, Any], text: str, usage: dict[str, int], *, chat: bool
    ) -> web.StreamResponse:
        how = self.behaviour
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if how.raw_stream is not None:
            await response.write(how.raw_stream)
            return response
        with_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        events = _events(text, how, usage if with_usage else None, chat=chat)
        if asked.get("return_token_ids"):
            events = with_ids(events, ids_of(_prompt(asked, chat)), chat=chat)
        for number, event in enumerate(events):
            if number == how.die_after:
                await response.write(event[: len(event) // 2])  # torn in the middle of an event
                if request.transport is not None:
                    request.transport.abort()
                await asyncio.sleep(1)
            if number == how.hang_after and how.hang_on in _prompt(asked, chat):
                await asyncio.sleep(3600)
            if number == how.error_after:
                error = {
                    "message": "EngineCore encountered an issue.",
                    "type": "InternalServerError",
                    "param": None,
                    "code": 500,
                }
                await response.write(_sse({"error": error}) + b"data: [DONE]\n\n")
                return response
            await pause(lambda: self.behaviour.delay)
            for at in range(0, len(event), 7 if how.split else len(event)):
                await response.write(event[at : at + 7] if how.split else event)
                if how.split:
                    await asyncio.sleep(0)
        return response


def _prompt(asked: dict[str, Any], chat: bool) -> str:
    return str(asked["messages"][-1]["content"] if chat else asked["prompt"])


def _head(chat: bool, suffix: str) -> dict[str, Any]:
    kind = ("chat.completion" if chat else "text_completion") + (suffix if chat else "")
    return {"id": "chatcmpl-1" if chat else "cmpl-1", "object": kind, "created": 0, "model": MODEL}


def _sse(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def _events(text: str, how: Behaviour, usage: dict[str, int] | None, *, chat: bool) -> Iterator[bytes]:
    """The events of a stream: a role, the text in `chunks` pieces, the reason it ended, usage, [DONE]."""
    head = _head(chat, ".chunk")

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        body = {"delta": delta} if chat else {"text": delta.get("content", "")}
        return _sse({**head, "choices": [{"index": 0, **body, "logprobs": None, "finish_reason": finish}]})

    if chat:
        yield event({"role": "assistant", "content": ""})
    size = max(1, -(-len(text) // how.chunks))
    for at in range(how.chunks):
        yield event({"content": text[at * size : (at + 1) * size]})
    yield event({}, "stop")
    if usage is not None:
        yield _sse({**head, "choices": [], "usage": usage})
    if not how.no_done:
        yield b"data: [DONE]\n\n"
