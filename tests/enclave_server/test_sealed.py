"""POST /sealed over real sockets: what is refused before it is opened, what is answered inside the seal, and replays."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from attestation import sealed
from attestation._b64 import b64url_encode
from attestation.binding import Keys
from attestation.checks import Check
from attestation.receipt import Outcome, Receipt, verify_receipt
from attestation.sealed import (
    SUITES,
    TICKET,
    X25519,
    X_WING,
    SealingKeys,
    Suite,
    seal_request,
    seal_with_ticket,
)
from attestation.sealed_answer import ANSWER_TYPE, AnswerOpener
from attestation.sealed_head import Headers, RequestHead
from attestation.sealed_ticket import Ticket, make_ticket
from enclave_server.app import App
from enclave_server.sealed import LARGE_AT_ONCE
from tests.caller import take_receipt, untrusting
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

SECRET = "the secret prompt"
CHAT = "/v1/chat/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
STREAMED = {**ASKED, "stream": True}
NONCE = bytes(range(32))
EVERY = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


@dataclass
class Inside:
    """What was inside a sealed answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


class Sealer:
    """A client that seals, and does nothing else: no attestation."""

    def __init__(self, gateway: LiveGateway) -> None:
        self.gateway = gateway
        self.http = httpx.Client(base_url=gateway.origin, verify=untrusting(), timeout=60, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def seal(
        self,
        body: Any = None,
        *,
        target: str = CHAT,
        method: str = "POST",
        suite: Suite = X_WING,
        late: float = 0,
        keys: Keys | None = None,
        statement: bytes | None = None,
        ticket: Ticket | None = None,  # of the suite TICKET; else one that the gateway could have given now
        more: Headers = (),
    ) -> tuple[bytes, AnswerOpener]:
        identity, now = self.gateway.identity, datetime.now(UTC)
        statement = statement or identity.statement_digest
        nonce = b64url_encode(NONCE)
        headers = (("content-type", "application/json"), ("attested-nonce", nonce), *more)
        head = RequestHead(method=method, target=target, headers=headers)
        text = b"" if body is None else json.dumps(body).encode()
        time = now + timedelta(seconds=late)
        if ticket or suite is TICKET:
            ticket = ticket or make_ticket(identity.keys.sealing.tickets, statement, now)
            return seal_with_ticket(head, text, ticket=ticket, statement=statement, now=time)
        keys = keys or identity.statement.keys
        return seal_request(head, text, keys=keys, statement=statement, now=time, suite=suite)

    def post(self, data: bytes, **headers: str) -> httpx.Response:
        kind = {"content-type": sealed.REQUEST_TYPE, **headers}
        return self.http.post(sealed.PATH, content=data, headers=kind)

    def ask(self, body: Any = None, **how: Any) -> Inside:
        data, opener = self.seal(body, **how)
        return unsealed(self.post(data), opener)

    def receipt(self, inside: Inside) -> Receipt:
        _, token = take_receipt(httpx.Headers(inside.headers), inside.body)
        return verify_receipt(token, self.gateway.identity.statement.keys.receipt_ed25519)


def unsealed(answer: httpx.Response, opener: AnswerOpener) -> Inside:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == ANSWER_TYPE
    body = opener.feed(answer.content)
    opener.end()
    assert opener.head is not None
    return Inside(opener.head.status, dict(opener.head.headers), body)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert answer.headers["content-type"] == "application/json"
    assert "attested-receipt" not in answer.headers
    return answer.status_code, error["code"]


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[Sealer]:
    with Sealer(gateway) as sealer:
        yield sealer


@EVERY
def test_plain(client: Sealer, engine: FakeEngine, suite: Suite) -> None:
    """The request inside is answered as any other, with a receipt that names its own path."""
    inside = client.ask(ASKED, suite=suite)
    assert inside.status == 200
    assert SECRET in json.loads(inside.body)["choices"][0]["message"]["content"]
    receipt = client.receipt(inside)
    assert (receipt.request.method, receipt.request.path) == ("POST", CHAT)
    assert receipt.request.length == len(json.dumps(ASKED))
    assert inside.headers["attested-nonce"] == b64url_encode(NONCE)
    assert "content-length" not in inside.headers
    assert [seen.path for seen in engine.requests] == [CHAT]


@EVERY
def test_streamed(client: Sealer, suite: Suite) -> None:
    """A stream has its receipt at its end, inside the seal."""
    inside = client.ask(STREAMED, suite=suite)
    events, _ = take_receipt(httpx.Headers(inside.headers), inside.body)
    assert events.endswith(b"data: [DONE]\n\n")
    assert client.receipt(inside).outcome is Outcome.COMPLETE


def test_a_get_with_a_query(client: Sealer) -> None:
    """Any route under /v1, with its query."""
    inside = client.ask(method="GET", target="/v1/models?a=b")
    assert json.loads(inside.body)["data"][0]["id"] == MODEL
    assert client.receipt(inside).request.path == "/v1/models?a=b"


def test_events_leave_as_they_come(client: Sealer, engine: FakeEngine) -> None:
    """The first event is here while the engine has not made the second one."""
    engine.behaviour.hang_after = 1
    data, opener = client.seal(STREAMED)
    kind = {"content-type": sealed.REQUEST_TYPE}
    with client.http.stream("POST", sealed.PATH, content=data, headers=kind) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        for piece in answer.iter_raw():
            if opener.feed(piece).startswith(b"data: "):
                break
        assert opener.head is not None
        assert opener.head.status == 200
    until(lambda: engine.cancelled)  # and a client that goes away ends the engine's work


@pytest.mark.parametrize(
    "target", ["/healthz", "/readyz", "/metrics", "/.well-known/attestation", "/sealed", "/", "/v1"]
)
def test_only_v1_is_behind_the_seal(client: Sealer, target: str) -> None:
    """Everything else is a signed 404 inside."""
    for method in ("GET", "POST"):
        inside = client.ask(method=method, target=target)
        assert (inside.status, inside.code) == (404, "not_found")
        assert client.receipt(inside).outcome is Outcome.ERROR


def test_errors_are_inside(client: Sealer, engine: FakeEngine) -> None:
    """An error of the engine or of the gateway looks from outside like any answer."""
    engine.behaviour.status = 400
    data, opener = client.seal(ASKED)
    answer = client.post(data)
    assert b"error" not in answer.content
    assert unsealed(answer, opener).status == 400
    inside = client.ask({"model": 1})
    assert (inside.status, inside.code) == (400, "invalid_type")
    assert client.receipt(inside).outcome is Outcome.ERROR


def test_an_aborted_stream_is_told_inside(client: Sealer, engine: FakeEngine) -> None:
    """The seal ends well, and what is in it says that the answer did not."""
    engine.behaviour.die_after = 2
    inside = client.ask(STREAMED)
    assert b"engine_aborted" in inside.body
    assert client.receipt(inside).outcome is Outcome.ABORTED


# ------------------------------------------------------------------------------------------------------- refusals


def test_a_replay_is_refused(client: Sealer, engine: FakeEngine) -> None:
    """The second time it is not opened, and the engine hears nothing of it."""
    data, opener = client.seal(ASKED)
    unsealed(client.post(data), opener)
    assert code_of(client.post(data)) == (409, Check.SEALED_REPLAY.replace(".", "_"))
    assert len(engine.requests) == 1


def test_a_replay_beside_the_first_is_refused(client: Sealer, engine: FakeEngine) -> None:
    """Also while the first is still being answered: exactly one of many is."""
    engine.behaviour.delay = 0.2
    data, _ = client.seal(ASKED)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(client.post(data).status_code)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200, *[409] * 7]
    assert len(engine.requests) == 1


def test_the_keys_of_another_boot_are_refused(client: Sealer, engine: FakeEngine) -> None:
    """After a restart, what is sealed to the old keys says so, and is not answered."""
    data, _ = client.seal(ASKED)
    client.gateway.restart()
    assert code_of(client.post(data)) == (422, "sealed_key")
    assert not engine.requests
    assert client.ask(ASKED).status == 200


def test_other_keys_under_this_statement_do_not_open(client: Sealer) -> None:
    """Whoever puts keys of their own into a statement gets nowhere with the enclave."""
    other = SealingKeys.generate()
    keys = Keys(
        receipt_ed25519=bytes(32),
        tls_spki_sha256=bytes(32),
        sealing_x_wing=other.public_x_wing,
        sealing_x25519=other.public_x25519,
    )
    for suite in (X_WING, X25519):
        assert code_of(client.post(client.seal(ASKED, keys=keys, suite=suite)[0])) == (400, "sealed_open")


@pytest.mark.parametrize("late", [-301, 600])  # what is sealed for later comes nearer on its way
def test_a_wrong_time_is_told_inside(client: Sealer, engine: FakeEngine, late: float) -> None:
    """Whoever sealed it can read why: the error is signed, and for its own request."""
    inside = client.ask(ASKED, late=late)
    assert (inside.status, inside.code) == (400, "sealed_time")
    receipt = client.receipt(inside)
    assert (receipt.request.path, receipt.request.length) == (CHAT, 0)
    assert not engine.requests


def test_a_content_that_is_none_is_told_inside(client: Sealer) -> None:
    """It opens, and is not laid out as the protocol says: a sealed error with a receipt for /sealed itself."""
    inside = client.ask(method="get")
    assert (inside.status, inside.code) == (400, "sealed_format")
    assert client.receipt(inside).request.path == sealed.PATH


def test_what_is_no_sealed_request_is_refused(client: Sealer) -> None:
    """Each with its own code, in OpenAI's shape, and without a word of what was sent."""
    data, _ = client.seal(ASKED)
    assert code_of(client.post(b"")) == (400, "sealed_format")
    assert code_of(client.post(data[:100])) == (400, "sealed_format")
    assert code_of(client.post(b"\2" + data[1:])) == (400, "sealed_format")
    assert code_of(client.post(data[:5] + b"\0\1" + data[7:])) == (400, "sealed_suite")
    assert code_of(client.post(data[:-1])) == (400, "sealed_open")
    assert code_of(client.post(data[:7] + bytes(32) + data[39:])) == (422, "sealed_key")
    other = client.post(data, **{"content-type": "application/json"})
    assert code_of(other) == (415, "unsupported_media_type")
    get = client.http.get(sealed.PATH)
    assert (code_of(get), get.headers["allow"]) == ((405, "method_not_allowed"), "POST")


def test_limits(tmp_path: Path, engine: FakeEngine) -> None:
    """A body of the longest length passes, a longer one is refused, by its announcement or by its bytes."""
    with (
        live_gateway(tmp_path, engine=engine, max_request_bytes=4096) as gateway,
        Sealer(gateway) as client,
    ):
        room = 4096 - len(json.dumps({**ASKED, "user": ""}))
        assert client.ask({**ASKED, "user": "x" * room}).status == 200
        longer = client.ask({**ASKED, "user": "x" * (room + 1)})
        assert (longer.status, longer.code) == (413, "request_too_large")
        too_long = bytes(sealed.max_request_bytes(4096) + 1)
        assert code_of(client.post(too_long)) == (413, "request_too_large")
        kind = {"content-type": sealed.REQUEST_TYPE}
        chunked = client.http.post(sealed.PATH, content=iter([too_long]), headers=kind)
        assert code_of(chunked) == (413, "request_too_large")


def test_a_body_that_does_not_end(tmp_path: Path, engine: FakeEngine) -> None:
    """It is not waited for."""

    def slow() -> Iterator[bytes]:
        yield b"\1"
        threading.Event().wait(2)
        yield b"\1"

    with live_gateway(tmp_path, engine=engine, body_seconds=0.5) as gateway, Sealer(gateway) as client:
        kind = {"content-type": sealed.REQUEST_TYPE}
        assert code_of(client.http.post(sealed.PATH, content=slow(), headers=kind)) == (408, "body_timeout")


def test_bodies_on_their_way_are_bounded(tmp_path: Path, engine: FakeEngine) -> None:
    """Strangers who hold back the ends of large bodies cannot fill the memory; small requests are taken all the while."""
    arrived = 0
    limits: dict[str, Any] = {"max_request_bytes": 256 * 1024, "body_seconds": 600}

    def counting(app: App) -> App:
        async def counted(scope: Any, receive: Any, send: Any) -> None:
            async def received() -> Any:
                nonlocal arrived
                message = await receive()
                arrived += len(message.get("body", b""))
                return message

            await app(scope, received, send)

        return counted

    with (
        live_gateway(tmp_path, engine=engine, wrap=counting, **limits) as gateway,
        Sealer(gateway) as client,
        ExitStack() as strangers,
    ):
        most = sealed.max_request_bytes(256 * 1024)
        head = f"POST /sealed HTTP/1.1\r\nHost: x\r\nContent-Type: {sealed.REQUEST_TYPE}\r\nContent-Length: {most}\r\n\r\n"
        for _ in range(LARGE_AT_ONCE):
            stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", gateway.settings.port)))
            tls = strangers.enter_context(untrusting().wrap_socket(stranger))
            tls.sendall(head.encode() + bytes(most - 1))
        until(lambda: arrived == LARGE_AT_ONCE * (most - 1))  # else one of them might be who is refused
        large = {**ASKED, "user": "x" * 200_000}
        refused = client.post(client.seal(large)[0])
        assert code_of(refused) == (503, "overloaded")
        assert refused.headers["retry-after"] == "2"
        assert client.ask(ASKED).status == 200
        strangers.close()
        until(lambda: client.post(client.seal(large)[0]).status_code == 200)
