"""The hot path over real sockets: bytes pass unchanged, and every answer has a receipt that verifies."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.receipt import Outcome, RunningDigest, Usage, verify_receipt
from enclave_server.app import App
from enclave_server.peek import DEFAULTS
from tests.caller import Caller, take_receipt, untrusting
from tests.servers import MODEL, Behaviour, FakeEngine, LiveGateway, live_gateway

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway, Caller]]:
    """One gateway for all tests of this file: they leave nothing behind in it."""
    folder = tmp_path_factory.mktemp("shared")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        yield engine, gateway, caller


@pytest.fixture
def engine(shared: tuple[FakeEngine, LiveGateway, Caller]) -> FakeEngine:
    shared[0].reset()
    return shared[0]


@pytest.fixture
def gateway(engine: FakeEngine, shared: tuple[FakeEngine, LiveGateway, Caller]) -> LiveGateway:
    return shared[1]


@pytest.fixture
def caller(engine: FakeEngine, shared: tuple[FakeEngine, LiveGateway, Caller]) -> Caller:
    return shared[2]


def until(condition: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def ask(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def test_plain_chat(caller: Caller, engine: FakeEngine) -> None:
    """A plain answer is the engine's own bytes; its receipt is complete and has the engine's token counts."""
    answer = caller.chat("two words", temperature=0.5, seed=7, stop=["x"], max_tokens=9)
    assert answer.status == 200
    assert answer.outcome is Outcome.COMPLETE
    assert answer.json["choices"][0]["message"]["content"] == "You said: two words"
    assert answer.receipt.usage == Usage(prompt_tokens=2, completion_tokens=5)
    changed = {"temperature": 0.5, "seed": 7, "stop": ["x"], "max_tokens": 9}
    assert answer.receipt.sampling == {**DEFAULTS, **changed}
    assert answer.receipt.model.name == MODEL
    assert engine.requests[-1].path == CHAT


def test_request_bytes_pass_unchanged(caller: Caller, engine: FakeEngine) -> None:
    """The engine gets the client's bytes, spaces and order included, and none of its headers."""
    body = b'{ "messages":[ {"content":"h\\u00e9llo","role":"user"}],\n "stream" : false , "model":"fake-model" }'
    caller.post(CHAT, body, {"Authorization": "Bearer secret", "Cookie": "a=b"})
    seen = engine.requests[-1]
    assert seen.body == body
    assert not {"authorization", "cookie", "attested-nonce"} & {name.lower() for name in seen.headers}


@pytest.mark.parametrize("split", [False, True], ids=["whole events", "torn reads"])
def test_streamed_chat(caller: Caller, engine: FakeEngine, split: bool) -> None:
    """A stream is the engine's events unchanged, then the receipt as the last thing on the wire."""
    engine.behaviour.split = split
    answer = caller.chat("hello", stream=True)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.events[-1] == "[DONE]"
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in answer.events[:-1])
    assert text == "You said: hello"
    assert answer.receipt.usage is None


def test_stream_usage(caller: Caller) -> None:
    """The token counts of a stream's last chunk stand in its receipt."""
    answer = caller.chat("one two three", stream=True, stream_options={"include_usage": True})
    assert answer.receipt.usage == Usage(prompt_tokens=3, completion_tokens=5)


def test_completions(caller: Caller) -> None:
    """The completions route answers plain and streamed."""
    body = {"model": MODEL, "prompt": "once"}
    assert caller.post("/v1/completions", body).json["choices"][0]["text"] == "You said: once"
    assert caller.post("/v1/completions", {**body, "stream": True}).outcome is Outcome.COMPLETE


def test_models(caller: Caller) -> None:
    """The model list comes from the engine; a query is signed and not passed on."""
    answer = caller.get("/v1/models?limit=3")
    assert answer.json["data"][0]["id"] == MODEL
    assert answer.receipt.request.path == "/v1/models?limit=3"


def test_receipts_count_up(caller: Caller) -> None:
    """No two receipts share an id, and the counter goes up."""
    first, second = caller.get("/v1/models").receipt, caller.get("/v1/models").receipt
    assert first.id != second.id
    assert first.counter < second.counter


def test_nonce_chosen_by_the_server(gateway: LiveGateway, caller: Caller) -> None:
    """Without a client's nonce the server picks one and says which."""
    response = caller.http.get("/v1/models")
    nonce = b64url_decode(response.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
    assert len(nonce) == 32
    assert caller.check(response, nonce, b"").status == 200


@pytest.mark.parametrize("nonce", ["", "AAAA", "=" * 43, "A" * 42 + "!", "A" * 44, "A" * 42 + "B"])
def test_malformed_nonce(caller: Caller, nonce: str) -> None:
    """A nonce that is not base64url of 32 bytes is refused, under a nonce of the server's."""
    response = caller.http.post(CHAT, json=ask(), headers={"Attested-Nonce": nonce})
    chosen = b64url_decode(response.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
    answer = caller.check(response, chosen, b"")
    assert (answer.status, answer.error, answer.outcome) == (400, "invalid_nonce", Outcome.ERROR)


def test_two_nonces(caller: Caller) -> None:
    """Two nonce headers are refused: which one counts must not be a guess."""
    response = caller.http.get(
        "/v1/models", headers=[("Attested-Nonce", "A" * 43), ("Attested-Nonce", "B" * 43)]
    )
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/load_lora_adapter", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "/v1/chat%2Fcompletions", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("HEAD", "/v1/models", 405, None),
        ("GET", "/v1/models?" + "x" * 3000, 414, "target_too_long"),
    ],
)
def test_refused_routes(
    gateway: LiveGateway, engine: FakeEngine, method: str, path: str, status: int, code: str | None
) -> None:
    """What is not in the table never reaches the engine, and is answered with a receipt."""
    with Caller(gateway.origin, gateway.policy_text) as caller:
        answer = caller.call(method, path)
    assert (answer.status, answer.outcome) == (status, Outcome.ERROR)
    assert code is None or answer.error == code
    assert status != 405 or answer.headers["allow"] in {"GET", "POST"}
    assert engine.requests == []


def test_outside_v1(caller: Caller, engine: FakeEngine) -> None:
    """The engine's other routes do not exist here."""
    for path in (
        "/invocations",
        "/tokenize",
        "/metrics",
        "/health",
        "/version",
        "/docs",
        "/openapi.json",
        "/",
    ):
        assert caller.http.get(path).status_code == 404
        assert caller.http.post(path).status_code == 404
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"stop": "\xff"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b'{"temperature": "hot"}', "invalid_type"),
        (b'{"stream": 1}', "invalid_type"),
        (b'{"logit_bias": {"5": {"deep": 1}}}', "invalid_type"),
        (b'{"n": 1e999}', "invalid_json"),
        (json.dumps({"stop": ["x" * 7000]}).encode(), "sampling_too_large"),
    ],
)
def test_refused_bodies(caller: Caller, engine: FakeEngine, body: bytes, code: str) -> None:
    """A body that the gateway cannot speak of in a receipt is refused before the engine sees it."""
    answer = caller.post(CHAT, body)
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert answer.error in {code, "invalid_type", "invalid_json"}
    assert answer.receipt.request.length == len(body)
    assert engine.requests == []


def test_engine_error_is_signed(caller: Caller, engine: FakeEngine) -> None:
    """The engine's own refusals pass unchanged, with outcome error."""
    engine.behaviour.status = 400
    answer = caller.chat("hello")
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert answer.json["error"]["message"] == "as told"
    assert answer.receipt.usage is None


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_too_large(tmp_path: Path, engine: FakeEngine, declared: bool) -> None:
    """A body over the limit is refused: at once when it says so, else after as many bytes."""
    with (
        live_gateway(tmp_path, engine=engine, max_request_bytes=4096) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        body = b"x" * 200_000
        if declared:
            answer = caller.post(CHAT, body)
            assert answer.receipt.request.length == 0
        else:
            nonce = bytes(32)
            response = caller.http.post(CHAT, content=iter([body]), headers={"Attested-Nonce": "A" * 43})
            answer = caller.check(response, nonce, body)
            assert answer.receipt.request.length > 4096
        assert (answer.status, answer.error) == (413, "request_too_large")
        assert caller.chat("the connection still works").status == 200


def test_too_many_headers(caller: Caller) -> None:
    """A request may not have hundreds of headers."""
    answer = caller.call("GET", "/v1/models", headers={f"X-{n}": "1" for n in range(120)})
    assert answer.error == "too_many_headers"


def test_encoded_body(caller: Caller) -> None:
    """A compressed request is refused: digests are over what the engine reads."""
    answer = caller.post(CHAT, ask(), {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error) == (415, "unsupported_encoding")


def test_slow_body(tmp_path: Path, engine: FakeEngine) -> None:
    """A body that does not arrive is not waited for."""
    with (
        live_gateway(tmp_path, engine=engine, body_seconds=0.2) as gateway,
        socket.create_connection(("127.0.0.1", gateway.settings.port)) as plain,
        untrusting().wrap_socket(plain) as tls,
    ):
        tls.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        head = tls.recv(65536)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"attested-receipt" in head


def test_engine_dies_in_mid_stream(caller: Caller, engine: FakeEngine) -> None:
    """The torn event is dropped, an error event is sent, and the receipt says aborted over all of it."""
    engine.behaviour.die_after = 3
    answer = caller.chat("hello", stream=True)
    assert (answer.status, answer.outcome) == (200, Outcome.ABORTED)
    *whole, error = answer.events
    assert len(whole) == 3
    assert error["error"]["code"] == "engine_aborted"
    assert answer.receipt.usage is None


def test_engine_dies_before_the_first_event(caller: Caller, engine: FakeEngine) -> None:
    """A stream that never began to flow is aborted as well."""
    engine.behaviour.die_after = 0
    answer = caller.chat("hello", stream=True)
    assert answer.outcome is Outcome.ABORTED
    assert len(answer.events) == 1


def test_engine_dies_before_a_plain_answer(caller: Caller, engine: FakeEngine) -> None:
    """A plain request whose engine dies is answered with a signed 502."""
    engine.behaviour.die_after = 0
    answer = caller.chat("hello")
    assert (answer.status, answer.error, answer.outcome) == (502, "engine_aborted", Outcome.ERROR)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_in_words(caller: Caller, engine: FakeEngine, stream: bool) -> None:
    """What a router before engines says when it reached none is not passed on: it names addresses, in no client's shape."""
    engine.behaviour.status, engine.behaviour.words = (
        500,
        "Request failed: http://127.0.0.1:8001/v1/chat/completions",
    )
    answer = caller.chat("hello", stream=stream)
    assert (answer.status, answer.error, answer.outcome) == (502, "engine_aborted", Outcome.ERROR)
    assert b"8001" not in answer.body


def test_engine_error_inside_a_stream(caller: Caller, engine: FakeEngine) -> None:
    """An error event inside a 200 stream, [DONE] or not, is never signed as complete."""
    engine.behaviour.error_after = 2
    answer = caller.chat("hello", stream=True)
    assert answer.outcome is Outcome.ABORTED
    assert answer.events[-1] == "[DONE]"
    assert "error" in answer.events[-2]


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"data: {}\n\n",
        b"data: {}\n\ndata: [DONE]",
        b"data: [DONE]\n\ndata: {}\n\n",
        b": attested x\n\ndata: [DONE]\n\n",
    ],
    ids=["empty", "no done", "torn done", "done in the middle", "a comment of ours"],
)
def test_odd_streams(caller: Caller, engine: FakeEngine, stream: bytes) -> None:
    """A stream that does not end as whole ones do is aborted."""
    engine.behaviour.raw_stream = stream
    answer = caller.chat("hello", stream=True)
    assert answer.outcome is Outcome.ABORTED
    assert answer.events[-1]["error"]["code"] == "engine_aborted"


def test_engine_down(caller: Caller, engine: FakeEngine) -> None:
    """While the engine is down requests get a signed 503 with Retry-After, also before its supervisor noticed."""
    engine.down()
    answer = caller.chat("hello")
    assert (answer.status, answer.error, answer.outcome) == (503, "engine_unavailable", Outcome.ERROR)
    assert int(answer.headers["retry-after"]) > 0
    engine.unready = "engine_restarting"
    assert caller.chat("hello", stream=True).status == 503
    assert caller.http.get("/readyz").json() == {"ready": False, "reason": "engine_restarting"}
    engine.up()
    engine.unready = None
    assert caller.chat("hello").status == 200


def test_engine_hangs(tmp_path: Path, engine: FakeEngine) -> None:
    """An engine that stops talking is not waited for forever: 504 plain, aborted in a stream."""
    engine.behaviour.hang_after = 2
    with (
        live_gateway(tmp_path, engine=engine, engine_read_seconds=0.3) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        answer = caller.chat("hello", stream=True)
        assert (answer.outcome, answer.events[-1]["error"]["code"]) == (Outcome.ABORTED, "engine_timeout")
        answer = caller.chat("hello")
        assert (answer.status, answer.error) == (504, "engine_timeout")
        until(lambda: engine.cancelled == 2)


def test_total_time(tmp_path: Path, engine: FakeEngine) -> None:
    """A request has an end, however steadily its answer trickles."""
    engine.behaviour = Behaviour(delay=0.05, chunks=100)
    with (
        live_gateway(tmp_path, engine=engine, request_seconds=0.4) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        answer = caller.chat("hello" * 40, stream=True)
        assert (answer.outcome, answer.events[-1]["error"]["code"]) == (Outcome.ABORTED, "engine_timeout")


@pytest.mark.parametrize("stream", [False, True])
def test_client_goes_away(gateway: LiveGateway, engine: FakeEngine, stream: bool) -> None:
    """A client that hangs up ends the engine's work at once."""
    engine.behaviour = Behaviour(delay=0.2 if stream else 30, chunks=200)
    body = json.dumps(ask(stream=stream)).encode()
    with (
        socket.create_connection(("127.0.0.1", gateway.settings.port)) as plain,
        untrusting().wrap_socket(plain) as tls,
    ):
        tls.sendall(
            b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)
        )
        until(lambda: engine.requests)
        if stream:
            assert tls.recv(100)
    until(lambda: engine.cancelled == 1)


def test_client_is_slow(gateway: LiveGateway, engine: FakeEngine) -> None:
    """A client that reads late makes the engine wait; then it gets every byte in order, and a receipt over them."""
    event = b'data: {"choices":[{"delta":{"content":"%06d"}}]}\n\n'
    stream = b"".join(event % number for number in range(100_000)) + b"data: [DONE]\n\n"
    engine.behaviour = Behaviour(raw_stream=stream)
    body = json.dumps(ask(stream=True)).encode()
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        plain.connect(("127.0.0.1", gateway.settings.port))
        with untrusting().wrap_socket(plain) as tls:
            tls.sendall(
                b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (CHAT.encode(), len(body), body)
            )
            time.sleep(0.3)
            answer = HTTPResponse(tls)
            answer.begin()
            given = answer.read()
    events, token = take_receipt(httpx.Headers(), given)
    assert events == stream
    receipt = verify_receipt(token, gateway.identity.statement.keys.receipt_ed25519)
    nonce = b64url_decode(answer.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
    assert receipt.outcome is Outcome.COMPLETE
    assert receipt.response.digest == RunningDigest(nonce, stream).digest()


def test_answer_too_large(tmp_path: Path, engine: FakeEngine) -> None:
    """An answer that the gateway will not hold in memory is an error of the engine's."""
    engine.behaviour.text = "x" * 5000
    with (
        live_gateway(tmp_path, engine=engine, max_answer_bytes=4096) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        assert caller.chat("hello").error == "engine_aborted"
        assert caller.chat("hello", stream=True).outcome is Outcome.COMPLETE


def test_drain(tmp_path: Path, engine: FakeEngine) -> None:
    """Told to stop, the gateway finishes the streams under way."""
    engine.behaviour = Behaviour(delay=0.1, chunks=8)
    with live_gateway(tmp_path, engine=engine, drain_seconds=5) as gateway:
        with Caller(gateway.origin, gateway.policy_text) as caller:
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(caller.chat("hello", stream=True)))
            asking.start()
            until(lambda: engine.requests)
            gateway.stop()
            asking.join(5)
        assert answers[0].outcome is Outcome.COMPLETE


def test_drain_times_out(tmp_path: Path, engine: FakeEngine) -> None:
    """A stream that takes too long to finish ends with an error and an aborted receipt, and is cancelled."""
    engine.behaviour = Behaviour(delay=0.1, chunks=500)
    with live_gateway(tmp_path, engine=engine, drain_seconds=0.3) as gateway:
        with Caller(gateway.origin, gateway.policy_text) as caller:
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(caller.chat("hello" * 99, stream=True)))
            asking.start()
            until(lambda: engine.requests)
            time.sleep(0.2)
            gateway.stop()
            asking.join(5)
        assert answers[0].outcome is Outcome.ABORTED
        assert answers[0].events[-1]["error"]["code"] == "stopping"
        until(lambda: engine.cancelled == 1)


def test_wrapped_app_can_tamper(tmp_path: Path, engine: FakeEngine) -> None:
    """`wrap` alters bytes after they were signed, which is what tamper tests need; a receipt shows it."""

    def wrap(app: App) -> App:
        async def tampered(scope: Any, receive: Any, send: Any) -> None:
            async def change(message: dict[str, Any]) -> None:
                body = message.get("body", b"")
                await send({**message, "body": body.replace(b"You said", b"I said!!")} if body else message)

            await app(scope, receive, change)

        return tampered

    with (
        live_gateway(tmp_path, engine=engine, wrap=wrap) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
        pytest.raises(Exception, match=r"receipt\.response"),
    ):
        caller.chat("hello")


async def test_many_at_once(gateway: LiveGateway, engine: FakeEngine) -> None:
    """Exchanges do not mix: each of many concurrent answers has its own text and a receipt of its own."""
    engine.behaviour.delay = 0.01
    async with httpx.AsyncClient(
        base_url=gateway.origin, verify=untrusting(), timeout=30, trust_env=False
    ) as http:
        responses = await asyncio.gather(
            *(http.post(CHAT, json=ask(f"number {n}", stream=n % 2 == 0)) for n in range(40))
        )
    with Caller(gateway.origin, gateway.policy_text) as caller:
        for n, response in enumerate(responses):
            nonce = b64url_decode(response.headers["attested-nonce"], Check.BINDING_NONCE, "nonce")
            answer = caller.check(response, nonce, response.request.content)
            assert answer.outcome is Outcome.COMPLETE
            assert str(n).encode() in answer.body
    assert len({take_receipt(response.headers, response.content)[1] for response in responses}) == 40


def test_tls_is_1_3_with_the_attested_key(gateway: LiveGateway) -> None:
    """The handshake is TLS 1.3 only, shows the key of the statement, and hands out no resumption ticket."""
    from hashlib import sha256

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    address = ("127.0.0.1", gateway.settings.port)
    with socket.create_connection(address) as plain, untrusting().wrap_socket(plain) as tls:
        assert tls.version() == "TLSv1.3"
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        key = x509.load_der_x509_certificate(der).public_key()
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        assert sha256(spki).digest() == gateway.identity.statement.keys.tls_spki_sha256
    old = untrusting()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(address) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)


def test_no_headers_of_the_servers_own(caller: Caller) -> None:
    """Answers name neither software nor time nor encoding."""
    headers = caller.chat("hello").headers
    assert not {"server", "date", "content-encoding"} & set(headers)
