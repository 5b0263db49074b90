"""An engine that dies, hangs, errs or says too much, and clients that go away: each answer has a receipt that says so."""

from __future__ import annotations

import json
import socket
import threading
import time
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.receipt import Outcome, RunningDigest, verify_receipt
from enclave_server import inference
from enclave_server.events import Events
from tests.caller import Caller, take_receipt, untrusting
from tests.enclave_server.inference.asking import CHAT, ask
from tests.processes import until
from tests.servers import Behaviour, FakeEngine, LiveGateway, live_gateway

SECRET = "Canary5c2aXyzzy"


def test_engine_error_is_signed(caller: Caller, engine: FakeEngine) -> None:
    """The engine's own refusals pass unchanged, with outcome error."""
    engine.behaviour.status = 400
    answer = caller.chat("hello")
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert answer.json["error"]["message"] == "as told"
    assert answer.receipt.usage is None


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_of_the_gateway_itself(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """What nobody foresaw is a signed error all the same; its kind and its place are logged, its words go nowhere."""

    def fail(*_: object) -> None:
        raise RuntimeError(f"while at work on {SECRET}")

    if stream:
        monkeypatch.setattr(Events, "feed", fail)
    else:
        monkeypatch.setattr(inference, "usage_of", fail)
    with capture_logs() as logs:
        answer = caller.chat(SECRET, stream=stream)
    expected = (200, Outcome.ABORTED) if stream else (500, Outcome.ERROR)
    assert (answer.status, answer.outcome) == expected
    error = answer.events[-1] if stream else answer.json
    assert error["error"]["code"] == "internal_error"
    assert SECRET not in repr(error)
    [failed] = [entry for entry in logs if entry["event"] == "exchange failed"]
    assert (failed["error"], failed["source"].partition(":")[0]) == ("RuntimeError", "test_failures.py")
    assert SECRET not in repr(logs)


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
        live_gateway(tmp_path, engine=engine, engine_read_seconds=3) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        answer = caller.chat("hello", stream=True)
        assert (answer.outcome, answer.events[-1]["error"]["code"]) == (Outcome.ABORTED, "engine_timeout")
        answer = caller.chat("hello")
        assert (answer.status, answer.error) == (504, "engine_timeout")
        until(lambda: engine.cancelled >= 2)


def test_total_time(tmp_path: Path, engine: FakeEngine) -> None:
    """A request has an end, however steadily its answer trickles."""
    engine.behaviour = Behaviour(delay=0.05, chunks=1000)
    with (
        live_gateway(tmp_path, engine=engine, request_seconds=4) as gateway,
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
    until(lambda: engine.cancelled)


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
    with live_gateway(tmp_path, engine=engine, drain_seconds=60) as gateway:
        with Caller(gateway.origin, gateway.policy_text) as caller:
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(caller.chat("hello", stream=True)))
            asking.start()
            until(lambda: engine.requests)
            gateway.stop()
            asking.join(60)
        assert answers[0].outcome is Outcome.COMPLETE


def test_drain_times_out(tmp_path: Path, engine: FakeEngine) -> None:
    """A stream that takes too long to finish ends with an error and an aborted receipt, and is cancelled."""
    engine.behaviour = Behaviour(delay=0.1, chunks=500)
    with live_gateway(tmp_path, engine=engine, drain_seconds=0.3) as gateway:
        with Caller(gateway.origin, gateway.policy_text) as caller:
            answers: list[Any] = []
            begun = threading.Event()
            body = ask("hello" * 99, stream=True)
            asking = threading.Thread(target=lambda: answers.append(caller.watch(CHAT, body, begun.set)))
            asking.start()
            assert begun.wait(60)
            gateway.stop()
            asking.join(60)
        assert answers[0].outcome is Outcome.ABORTED
        assert answers[0].events[-1]["error"]["code"] == "stopping"
        until(lambda: engine.cancelled)
