"""The tamper table of sealed exchanges: what somebody in the middle may do to them, and the check that refuses it.

They sit between the real gateway and OpenAI's own client, blocking and async, plain and streamed. Every refusal is by the
check that stands beside the case, and none is retried.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest

from attestation import sealed
from attestation._b64 import b64url_decode, b64url_encode
from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.sealed_head import RequestHead
from client_sdk import AsyncOpenAI, OpenAI
from tests.caller import untrusting
from tests.client_sdk.apart import one_by_one
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you there"}]}
Answer = tuple[int, str, bytes]  # status, content type, body


@dataclass
class Middle:
    """Sees every sealed request and answer; `ask` and `edit` change them. Everything else it lets through."""

    ask: Callable[[bytes], bytes] | None = None
    edit: Callable[[Answer], Answer] | None = None
    lie: Callable[[bytes], bytes] | None = None  # changes the evidence document
    requests: list[bytes] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def wrap(self, app: Any) -> Any:
        async def meddled(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] not in {sealed.PATH, "/.well-known/attestation"}:
                await app(scope, receive, send)
                return
            change = self.edit if scope["path"] == sealed.PATH else self._lying
            await self._pass_on(app, scope, receive, send, change)

        return meddled

    def _lying(self, answer: Answer) -> Answer:
        status, kind, body = answer
        return status, kind, self.lie(body) if self.lie else body

    async def _pass_on(
        self, app: Any, scope: Any, receive: Any, send: Any, change: Callable[[Answer], Answer] | None
    ) -> None:
        asked = bytearray()
        while True:
            message = await receive()
            asked += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"] == sealed.PATH:
            self.requests.append(bytes(asked))
        request = [bytes(asked)]

        async def changed() -> Any:
            if request:
                body = request.pop()
                body = self.ask(body) if self.ask and scope["path"] == sealed.PATH else body
                return {"type": "http.request", "body": body}
            return await receive()

        told: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            told.append(message)

        headers = [(n, v) for n, v in scope["headers"] if n != b"content-length"]
        await app({**scope, "headers": headers}, changed, keep)
        kept = dict(told[0]["headers"])
        kind = kept.get(b"content-type", b"").decode()
        answer = told[0]["status"], kind, b"".join(m.get("body", b"") for m in told[1:])
        if scope["path"] == sealed.PATH:
            self.answers.append(answer)
        status, kind, body = change(answer) if change else answer
        kept[b"content-type"], kept[b"content-length"] = kind.encode(), b"%d" % len(body)
        await send({"type": "http.response.start", "status": status, "headers": list(kept.items())})
        await send({"type": "http.response.body", "body": body})


@dataclass
class Rig:
    gateway: LiveGateway
    engine: FakeEngine
    middle: Middle


@pytest.fixture(scope="module")
def whole_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The real gateway with somebody in the middle."""
    folder, middle = tmp_path_factory.mktemp("between"), Middle()
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=middle.wrap) as running,
    ):
        yield Rig(running, engine, middle)


@pytest.fixture
def rig(whole_rig: Rig) -> Iterator[Rig]:
    """With nobody meddling yet."""
    middle = whole_rig.middle
    whole_rig.engine.reset()
    middle.requests.clear()
    middle.answers.clear()
    with one_by_one(whole_rig.engine):
        yield whole_rig
    middle.ask = middle.edit = middle.lie = None


def ask_blocking(rig: Rig, streamed: bool) -> str:
    client: Any
    with OpenAI(base_url=rig.gateway.url, policy=rig.gateway.policy_text, api_key="k") as client:
        if not streamed:
            return str(client.chat.completions.create(**ASKED).choices[0].message.content)
        with client.chat.completions.create(stream=True, **ASKED) as events:
            return "".join(c.delta.content or "" for event in events for c in event.choices)


def ask_async(rig: Rig, streamed: bool) -> str:
    async def work() -> str:
        client: Any
        policy = rig.gateway.policy_text
        async with AsyncOpenAI(base_url=rig.gateway.url, policy=policy, api_key="k") as client:
            if not streamed:
                return str((await client.chat.completions.create(**ASKED)).choices[0].message.content)
            async with await client.chat.completions.create(stream=True, **ASKED) as events:
                return "".join([c.delta.content or "" async for event in events for c in event.choices])

    return asyncio.run(work())


Ask = Callable[[Rig, bool], str]
ASK = pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


def refused(ask: Ask, rig: Rig, streamed: bool) -> Check:
    """The check that refuses; that nothing does is the failure these tests are about."""
    with pytest.raises(AttestationError) as caught:
        ask(rig, streamed)
    return caught.value.check


def chunks_of(body: bytes) -> list[bytes]:
    """The random value, then the chunks."""
    found, at = [body[:32]], 32
    while at < len(body):
        end = at + 5 + int.from_bytes(body[at + 1 : at + 5], "big")
        found.append(body[at:end])
        at = end
    return found


def in_chunks(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Answer], Answer]:
    return lambda answer: (answer[0], answer[1], b"".join(change(chunks_of(answer[2]))))


#: What is done to more than one exchange, and the check that each test below expects.
SCENES = {
    "cut at any boundary of chunks, or inside a chunk": Check.SEALED_TRUNCATED,
    "the answer to an identical request a moment before": Check.SEALED_OPEN,
    "one chunk of the answer to an identical request": Check.SEALED_OPEN,
    "an answer in plain that is called sealed": Check.SEALED_FORMAT,
    "a request recorded before, in place of a new one": Check.SEALED_REPLAY,
    "a request of somebody else in its place": Check.SEALED_OPEN,
    "a request sealed to the keys of the boot before": Check.SEALED_KEY,
    "a request sealed to a statement that has ended": Check.SEALED_KEY,
    "a refusal of the keys, made up": Check.SEALED_KEY,
    "sealing keys of somebody else put into the evidence": Check.BINDING_REPORT_DATA,
}


@ASK
@STREAMED
def test_untouched(rig: Rig, ask: Ask, streamed: bool) -> None:
    """With nobody meddling the answer arrives; a stream is one chunk for each event or more, and a plain answer is one."""
    assert ask(rig, streamed) == "You said: hello you there"
    assert len(rig.middle.requests) == 1
    chunks = chunks_of(rig.middle.answers[0][2])[1:]
    assert (len(chunks) > 2) == streamed
    assert [chunk[0] for chunk in chunks] == [*[0] * (len(chunks) - 1), 1]


#: Of a stream, whose chunks are: random value, first, …, last.
CHUNKS: dict[str, tuple[Check, Callable[[list[bytes]], list[bytes]]]] = {
    "the first chunk dropped": (Check.SEALED_ORDER, lambda c: [c[0], *c[2:]]),
    "a chunk dropped": (Check.SEALED_ORDER, lambda c: [*c[:2], *c[3:]]),
    "two chunks in another order": (Check.SEALED_ORDER, lambda c: [c[0], c[2], c[1], *c[3:]]),
    "a chunk twice": (Check.SEALED_ORDER, lambda c: [*c[:2], *c[1:]]),
    "the last chunk twice": (Check.SEALED_ORDER, lambda c: [*c, c[-1]]),
    "the last chunk too early": (Check.SEALED_ORDER, lambda c: [*c[:2], c[-1]]),
    "bytes after the last chunk": (Check.SEALED_ORDER, lambda c: [*c, b"\1"]),
    "another chunk marked as the last": (Check.SEALED_TRUNCATED, lambda c: [c[0], b"\1" + c[1][1:]]),
    "the last chunk not marked": (Check.SEALED_TRUNCATED, lambda c: [*c[:-1], b"\0" + c[-1][1:]]),
    "the random value changed": (Check.SEALED_OPEN, lambda c: [bytes(32), *c[1:]]),
    "a byte changed": (Check.SEALED_OPEN, lambda c: [*c[:2], c[2][:-1] + bytes([c[2][-1] ^ 1]), *c[3:]]),
    "a length changed": (Check.SEALED_FORMAT, lambda c: [c[0], c[1][:1] + b"\xff" * 4 + c[1][5:]]),
    "no chunk": (Check.SEALED_TRUNCATED, lambda c: c[:1]),
    "nothing": (Check.SEALED_TRUNCATED, lambda c: []),
}


@ASK
@pytest.mark.parametrize("case", CHUNKS)
def test_chunks(rig: Rig, ask: Ask, case: str) -> None:
    """Order, number, place and marks of the chunks of a stream."""
    check, change = CHUNKS[case]
    rig.middle.edit = in_chunks(change)
    assert refused(ask, rig, True) is check
    assert len(rig.middle.requests) == 1, "a refusal is not retried"


@ASK
@STREAMED
def test_cut_at_every_chunk(rig: Rig, ask: Ask, streamed: bool) -> None:
    """Every boundary of chunks, and inside each: never taken for whole."""
    cut = SCENES["cut at any boundary of chunks, or inside a chunk"]
    ask(rig, streamed)
    number = len(chunks_of(rig.middle.answers[0][2]))
    for keep in range(1, number):
        rig.middle.edit = in_chunks(lambda c, keep=keep: c[: keep % len(c)])  # type: ignore[misc]
        assert refused(ask, rig, streamed) is cut, keep
        rig.middle.edit = in_chunks(lambda c, keep=keep: [*c[: keep % len(c)], c[-1][:20]])  # type: ignore[misc]
        assert refused(ask, rig, streamed) is cut, keep


@ASK
@STREAMED
def test_chunks_of_another_answer(rig: Rig, ask: Ask, streamed: bool) -> None:
    """To an identical request of the same client, a moment before: the whole answer, and one chunk of it."""
    ask(rig, streamed)
    before = rig.middle.answers[0]
    rig.middle.edit = lambda _: before
    assert refused(ask, rig, streamed) is SCENES["the answer to an identical request a moment before"]
    old = chunks_of(before[2])
    rig.middle.edit = in_chunks(lambda c: [c[0], old[1], *c[2:]])
    assert refused(ask, rig, streamed) is SCENES["one chunk of the answer to an identical request"]


STRIPPED = {
    "the answer in plain": (200, "application/json", b'{"object":"chat.completion","choices":[]}'),
    "a stream in plain": (200, "text/event-stream", b"data: [DONE]\n\n"),
    "a redirect": (307, "text/html", b""),
    "an error": (404, "application/json", b'{"error":{"message":"m","code":"not_found"}}'),
    "an error of a balancer": (502, "text/html", b"<html>Bad Gateway"),
}


@ASK
@STREAMED
@pytest.mark.parametrize("case", STRIPPED)
def test_the_seal_taken_off(rig: Rig, ask: Ask, streamed: bool, case: str) -> None:
    """What is not sealed is no answer, whatever it says. Only that something stands in the way is tried again, as by openai."""
    rig.middle.edit = lambda _: STRIPPED[case]
    assert refused(ask, rig, streamed) is Check.SEALED_MISSING
    tries = 1 + openai.DEFAULT_MAX_RETRIES if case == "an error of a balancer" else 1
    assert len(rig.middle.requests) == tries


@ASK
@STREAMED
def test_called_sealed(rig: Rig, ask: Ask, streamed: bool) -> None:
    """An answer in plain under the media type of a sealed one does not open."""
    rig.middle.edit = lambda answer: (200, answer[1], b'{"object":"chat.completion","choices":[]}' * 9)
    assert refused(ask, rig, streamed) is SCENES["an answer in plain that is called sealed"]


REQUESTS: dict[str, tuple[Check, Callable[[bytes], bytes]]] = {
    "a byte changed": (Check.SEALED_OPEN, lambda d: d[:-1] + bytes([d[-1] ^ 1])),
    "cut": (Check.SEALED_OPEN, lambda d: d[:-1]),
    "the suite downgraded": (Check.SEALED_OPEN, lambda d: d[:1] + sealed.X25519.number + d[7:]),
    "a weaker cipher": (Check.SEALED_SUITE, lambda d: d[:5] + b"\0\1" + d[7:]),
    "another version": (Check.SEALED_FORMAT, lambda d: b"\2" + d[1:]),
    "another statement": (Check.SEALED_KEY, lambda d: d[:7] + bytes(32) + d[39:]),
    "no request": (Check.SEALED_FORMAT, lambda d: b""),
}


@ASK
@STREAMED
@pytest.mark.parametrize("case", REQUESTS)
def test_requests(rig: Rig, ask: Ask, streamed: bool, case: str) -> None:
    """A request that was touched is not opened, and the client is told so by name."""
    check, rig.middle.ask = REQUESTS[case]
    assert refused(ask, rig, streamed) is check
    assert len(rig.middle.requests) == 1, "a refusal is not retried"
    assert not rig.engine.requests


@ASK
@STREAMED
def test_a_request_replayed_in_place_of_another(rig: Rig, ask: Ask, streamed: bool) -> None:
    """The enclave answers a request once, so nobody can have an old prompt answered again."""
    ask(rig, streamed)
    old = rig.middle.requests[0]
    rig.middle.ask = lambda _: old
    assert refused(ask, rig, streamed) is SCENES["a request recorded before, in place of a new one"]
    assert len(rig.engine.requests) == 1


@ASK
def test_a_request_of_somebody_else(rig: Rig, ask: Ask) -> None:
    """Anybody can seal, and have it answered; the client cannot open what is not for its own request."""
    identity = rig.gateway.identity

    def other(_: bytes) -> bytes:
        return sealed.seal_request(
            RequestHead(method="GET", target="/v1/models"),
            b"",
            keys=identity.statement.keys,
            statement=identity.statement_digest,
            now=datetime.now(UTC),
        )[0]

    rig.middle.ask = other
    assert refused(ask, rig, False) is SCENES["a request of somebody else in its place"]


@pytest.mark.parametrize("whose", ["the keys of the boot before", "a statement that has ended"])
def test_sealed_to_keys_that_are_gone(rig: Rig, whose: str) -> None:
    """An enclave whose keys are gone answers nothing that was recorded for it."""
    check = SCENES[f"a request sealed to {whose}"]
    ask_blocking(rig, False)
    old, gateway = rig.middle.requests[0], rig.gateway
    if whose == "a statement that has ended":
        gateway.ahead = gateway.identities.left  # the clock comes to its end
        gateway.succeed()
    else:
        gateway.restart()
    rig.engine.reset()
    kind = {"Content-Type": sealed.REQUEST_TYPE}
    url = rig.gateway.origin + sealed.PATH
    answer = httpx.post(url, content=old, headers=kind, verify=untrusting(), trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, check.replace(".", "_"))
    assert not rig.engine.requests


@ASK
def test_a_refusal_of_keys_made_up(rig: Rig, ask: Ask) -> None:
    """Whoever says "other keys" in the enclave's place makes the client verify anew, and send nothing again."""
    body = b'{"error":{"message":"m","code":"sealed_key"}}'
    rig.middle.edit = lambda _: (422, "application/json", body)
    assert refused(ask, rig, False) is SCENES["a refusal of the keys, made up"]
    assert len(rig.middle.requests) == 1


@ASK
@STREAMED
def test_the_statement_swapped(rig: Rig, ask: Ask, streamed: bool) -> None:
    """Sealing keys that somebody puts into the evidence are not what the hardware signed: nothing is sealed to them."""
    mine = sealed.SealingKeys.generate()

    def swap(document: bytes) -> bytes:
        value = json.loads(document)
        text = b64url_decode(value["statement"][1], Check.EVIDENCE_FORMAT, "statement")
        theirs = parse_statement(text).keys
        text = text.replace(theirs.sealing_x_wing.hex().encode(), mine.public_x_wing.hex().encode())
        text = text.replace(theirs.sealing_x25519.hex().encode(), mine.public_x25519.hex().encode())
        value["statement"][1] = b64url_encode(text)
        return json.dumps(value).encode()

    rig.middle.lie = swap
    assert refused(ask, rig, streamed) is SCENES["sealing keys of somebody else put into the evidence"]
    assert not rig.middle.requests


@STREAMED
@pytest.mark.parametrize("places", [12, pytest.param(400, marks=pytest.mark.slow)])
def test_any_byte_of_an_answer(rig: Rig, streamed: bool, places: int) -> None:
    """Wherever a byte is changed, the answer is refused, and by a check of the seal."""
    ask_blocking(rig, streamed)
    length = len(rig.middle.answers[0][2])
    for at in range(0, length, max(1, length // places)):

        def flip(answer: Answer, at: int = at) -> Answer:
            body = answer[2]
            return answer[0], answer[1], body[:at] + bytes([body[at] ^ (1 << at % 8)]) + body[at + 1 :]

        rig.middle.edit = flip
        assert refused(ask_blocking, rig, streamed).startswith("sealed."), at
