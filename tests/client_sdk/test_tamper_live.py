"""The tamper table, live: a middleware between the real gateway and OpenAI's own client, blocking and async, plain and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.receipt import (
    COMMENT,
    NONCE_HEADER,
    RECEIPT_HEADER,
)
from client_sdk import AsyncOpenAI, OpenAI
from tests.client_sdk.test_tamper import RECEIPT_CHECKS, refused
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

Scope = dict[str, Any]


@dataclass
class Meddler:
    """An ASGI middleware that changes what the gateway says on /v1: `edit(status, headers, body)` of whole answers."""

    edit: Callable[[int, dict[bytes, bytes], bytes], tuple[int, dict[bytes, bytes], bytes]] | None = None
    ask: Callable[[bytes], bytes] | None = None  # changes a request's body on its way to the gateway
    seen: list[tuple[dict[bytes, bytes], bytes]] = field(default_factory=list)

    def wrap(self, app: Any) -> Any:
        async def meddled(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
                await app(scope, receive, send)
                return
            status, headers, body = await self._whole(app, scope, receive)
            self.seen.append((headers, body))
            if self.edit is not None:
                status, headers, body = self.edit(status, headers, body)
            headers.pop(b"content-length", None)
            await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
            await send({"type": "http.response.body", "body": body})

        return meddled

    async def _whole(self, app: Any, scope: Scope, receive: Any) -> tuple[int, dict[bytes, bytes], bytes]:
        messages: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            messages.append(message)

        async def changed() -> Any:
            message = await receive()
            if self.ask is not None and message.get("body"):
                return {**message, "body": self.ask(message["body"])}
            return message

        await app(scope, changed, keep)
        body = b"".join(m.get("body", b"") for m in messages)
        return messages[0]["status"], dict(messages[0]["headers"]), body


@dataclass
class Rig:
    gateway: LiveGateway
    meddler: Meddler


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The real gateway with somebody in the middle."""
    folder, meddler = tmp_path_factory.mktemp("tamper"), Meddler()
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=meddler.wrap) as running,
    ):
        yield Rig(running, meddler)


@pytest.fixture
def meddler(rig: Rig) -> Iterator[Meddler]:
    """The one in the middle, who does nothing yet."""
    rig.meddler.seen.clear()
    yield rig.meddler
    rig.meddler.edit = rig.meddler.ask = None


# unsealed, so that there is something to meddle with: a seal leaves nothing to change but itself
PINNED: dict[str, Any] = {"api_key": "k", "channel": "pinned"}
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you there"}]}
USED = {"stream_options": {"include_usage": True}}


def ask_blocking(rig: Rig, streamed: bool) -> str:
    client: Any
    with OpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
        if not streamed:
            return str(client.chat.completions.create(**ASKED).choices[0].message.content)
        with client.chat.completions.create(stream=True, **ASKED, **USED) as events:
            return "".join(c.delta.content or "" for event in events for c in event.choices)


def ask_async(rig: Rig, streamed: bool) -> str:
    async def work() -> str:
        client: Any
        async with AsyncOpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
            if not streamed:
                return str((await client.chat.completions.create(**ASKED)).choices[0].message.content)
            async with await client.chat.completions.create(stream=True, **ASKED, **USED) as events:
                return "".join([c.delta.content or "" async for event in events for c in event.choices])

    return asyncio.run(work())


ASK = pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


def in_json(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    """A change to what an answer says, plain or in the first event of a stream that has the place for it."""

    def edit(body: bytes) -> bytes:
        if not body.startswith(b"data: "):
            value = json.loads(body)
            change(value)
            return json.dumps(value, separators=(",", ":")).encode()
        events = body.split(b"\n\n")
        for at, event in enumerate(events):
            if event.startswith(b"data: {"):
                value = json.loads(event[6:])
                before = json.dumps(value)
                try:
                    change(value)
                except (LookupError, TypeError):
                    continue
                if json.dumps(value) != before:
                    events[at] = b"data: " + json.dumps(value, separators=(",", ":")).encode()
                    break
        return b"\n\n".join(events)

    return edit


def _said(value: dict[str, Any]) -> dict[str, Any]:
    """The message of a plain answer, the delta of an event."""
    choice: dict[str, Any] = value["choices"][0]
    said: dict[str, Any] = choice["message"] if "message" in choice else choice["delta"]
    return said


def _text(value: dict[str, Any]) -> None:
    said = _said(value)
    if said["content"]:
        said["content"] = "bye"


def _model_name(value: dict[str, Any]) -> None:
    value["model"] = "a-better-model"


def _usage(value: dict[str, Any]) -> None:
    value["usage"]["completion_tokens"] += 1000


def _finish(value: dict[str, Any]) -> None:
    if value["choices"][0]["finish_reason"]:
        value["choices"][0]["finish_reason"] = "length"


def _second_choice(value: dict[str, Any]) -> None:
    value["choices"].append({**value["choices"][0], "index": 1})


TOOL = {"index": 0, "id": "t", "type": "function", "function": {"name": "pay", "arguments": "{}"}}


def _tool_call(value: dict[str, Any]) -> None:
    _said(value)["tool_calls"] = [TOOL]


def _text_beside_tool_call(value: dict[str, Any]) -> None:
    said = _said(value)
    said["content"], said["tool_calls"] = "I paid.", [TOOL]


SAYS = {
    "another text": _text,
    "another model": _model_name,
    "other usage": _usage,
    "another finish_reason": _finish,
    "a second choice": _second_choice,
    "a tool call": _tool_call,
    "text beside a tool call": _text_beside_tool_call,
}


@ASK
@STREAMED
def test_live_untouched(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool) -> None:
    """With nobody meddling the answer arrives."""
    assert ask(rig, streamed) == "You said: hello you there"


@ASK
@STREAMED
@pytest.mark.parametrize("what", SAYS)
def test_live_changed_words(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool, what: str
) -> None:
    """OpenAI's client gets an error instead of an answer that says something else."""
    change = in_json(SAYS[what])
    meddler.edit = lambda status, headers, body: (status, headers, change(body))
    assert refused(ask, rig, streamed) is Check.RECEIPT_RESPONSE
    assert len(meddler.seen) == 1, "a refusal is not retried"
    assert change(meddler.seen[0][1]) != meddler.seen[0][1]


Edit = Callable[[int, dict[bytes, bytes], bytes], tuple[int, dict[bytes, bytes], bytes]]


def _header(name: str, change: Callable[[bytes], bytes | None]) -> Edit:
    def edit(status: int, headers: dict[bytes, bytes], body: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
        key = name.lower().encode()
        value = change(headers.pop(key, b""))
        return status, headers | ({key: value} if value is not None else {}), body

    return edit


def _body(change: Callable[[bytes], bytes]) -> Edit:
    return lambda status, headers, body: (status, headers, change(body))


def _flip(at: int, bits: int = 1) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


LIVE_PLAIN: dict[str, tuple[Check, Edit]] = {
    "no receipt": (Check.RECEIPT_MISSING, _header(RECEIPT_HEADER, lambda _: None)),
    "a changed receipt": (Check.RECEIPT_SIGNATURE, _header(RECEIPT_HEADER, _flip(200))),
    "another nonce": (
        Check.RECEIPT_REQUEST,
        _header(NONCE_HEADER, lambda _: b64url_encode(bytes(32)).encode()),
    ),
    "no nonce": (Check.RECEIPT_REQUEST, _header(NONCE_HEADER, lambda _: None)),
    "another status": (Check.RECEIPT_STATUS, lambda status, headers, body: (201, headers, body)),
    "an error made of an answer": (Check.RECEIPT_STATUS, lambda status, headers, body: (503, headers, body)),
    "a content coding": (Check.RECEIPT_RESPONSE, _header("Content-Encoding", lambda _: b"deflate")),
    "called a stream": (Check.STREAM_TRUNCATED, _header("Content-Type", lambda _: b"text/event-stream")),
    "a byte more": (Check.RECEIPT_RESPONSE, _body(lambda body: body + b"\n")),
    "a byte less": (Check.RECEIPT_RESPONSE, _body(lambda body: body[:-1])),
}


@ASK
@pytest.mark.parametrize("what", LIVE_PLAIN)
def test_live_plain(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], what: str) -> None:
    """Headers, status and length of a plain answer."""
    check, meddler.edit = LIVE_PLAIN[what]
    assert refused(ask, rig, False) is check
    assert len(meddler.seen) == 1, "a refusal is not retried"


def _events(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    """A change to the order or number of events; the last one is the receipt's comment."""
    return lambda body: b"".join(change([e + b"\n\n" for e in body.split(b"\n\n")[:-1]]))


LIVE_STREAMED: dict[str, tuple[Check, Callable[[bytes], bytes]]] = {
    "an event dropped": (Check.RECEIPT_RESPONSE, _events(lambda e: e[:2] + e[3:])),
    "an event twice": (Check.RECEIPT_RESPONSE, _events(lambda e: e[:3] + e[2:])),
    "two events in another order": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:2], e[3], e[2], *e[4:]])),
    "[DONE] dropped": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:-2], e[-1]])),
    "[DONE] early": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e[:3], e[-2], *e[3:]])),
    "the receipt dropped": (Check.STREAM_TRUNCATED, _events(lambda e: e[:-1])),
    "cut at the end of an event": (Check.STREAM_TRUNCATED, _events(lambda e: e[:3])),
    "cut inside an event": (Check.STREAM_TRUNCATED, lambda body: body[:300]),
    "cut inside the receipt": (Check.STREAM_TRUNCATED, lambda body: body[:-9]),
    "nothing at all": (Check.STREAM_TRUNCATED, lambda _: b""),
    "the receipt twice": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e, e[-1]])),
    "an event after the receipt": (Check.RECEIPT_RESPONSE, _events(lambda e: [*e, e[1]])),
    "a changed receipt": (
        Check.RECEIPT_SIGNATURE,
        lambda body: _flip(body.index(COMMENT) + len(COMMENT) + 200)(body),
    ),
}


@ASK
@pytest.mark.parametrize("what", LIVE_STREAMED)
def test_live_streamed(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], what: str) -> None:
    """Order, number and end of a stream's events."""
    check, change = LIVE_STREAMED[what]
    meddler.edit = _body(change)
    assert refused(ask, rig, True) is check
    assert len(meddler.seen) == 1, "a refusal is not retried"


def read_blocking(rig: Rig) -> None:
    client: Any
    with OpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
        for _ in client.chat.completions.create(stream=True, **ASKED, **USED):
            pass


def read_async(rig: Rig) -> None:
    async def work() -> None:
        client: Any
        async with AsyncOpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, **PINNED) as client:
            async for _ in await client.chat.completions.create(stream=True, **ASKED, **USED):
                pass

    asyncio.run(work())


@pytest.mark.parametrize("read", [read_blocking, read_async], ids=["blocking", "async"])
@pytest.mark.parametrize("places", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_live_any_byte_of_a_stream(
    rig: Rig, meddler: Meddler, read: Callable[[Rig], None], places: int
) -> None:
    """OpenAI's client never gets to complain first: what it could not read is held back until the receipt refuses it."""
    read(rig)
    length = len(meddler.seen[0][1])
    for at in range(0, length, max(1, length // places)):
        meddler.edit = _body(_flip(at, 1 << at % 8))
        assert refused(read, rig) in {*RECEIPT_CHECKS, Check.RECEIPT_RESPONSE, Check.STREAM_TRUNCATED}, at


#: What takes more than one exchange, and the check that each test below expects.
SCENES = {
    "the request changed on its way to the enclave": Check.RECEIPT_REQUEST,
    "the answer to an identical request before": Check.RECEIPT_REQUEST,
    "an answer of the boot before": Check.RECEIPT_SIGNATURE,
}


@ASK
@STREAMED
def test_live_changed_request(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool
) -> None:
    """An answer to another prompt than the one sent is refused, although the enclave itself gave it."""
    meddler.ask = lambda body: body.replace(b"hello", b"HELLO")
    assert refused(ask, rig, streamed) is SCENES["the request changed on its way to the enclave"]


@ASK
@STREAMED
def test_live_replay(rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool) -> None:
    """The answer and receipt of a request do not serve for the next, identical one."""
    ask(rig, streamed)
    headers, body = meddler.seen[0]
    name = NONCE_HEADER.lower().encode()
    meddler.edit = lambda status, now, _: (status, {**headers, name: now[name]}, body)
    assert refused(ask, rig, streamed) is SCENES["the answer to an identical request before"]


@ASK
@STREAMED
def test_live_receipt_of_another_enclave(
    rig: Rig, meddler: Meddler, ask: Callable[[Rig, bool], str], streamed: bool
) -> None:
    """After a restart with new keys, an answer of the old boot is refused."""
    ask(rig, streamed)
    headers, body = meddler.seen[0]
    name = NONCE_HEADER.lower().encode()
    rig.gateway.restart()
    meddler.edit = lambda status, now, _: (status, {**headers, name: now[name]}, body)
    assert refused(ask, rig, streamed) is SCENES["an answer of the boot before"]
