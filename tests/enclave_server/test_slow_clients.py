"""Clients that do not take what they asked for: they hold nothing for ever, and what they take in the end is whole."""

from __future__ import annotations

import gc
import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from attestation import sealed
from attestation.receipt import Outcome, verify_receipt
from enclave_server import server
from tests.caller import take_receipt, untrusting
from tests.enclave_server.test_sealed import STREAMED, Sealer
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

EVENT = b'data: {"choices":[{"text":"%b"}]}\n\n' % (b"x" * 10_000)
STREAM = EVENT * 2000 + b"data: [DONE]\n\n"  # more than the buffers of two sockets hold
PLAIN = json.dumps({"model": MODEL, "prompt": "a"}).encode()
ASKED = json.dumps({"model": MODEL, "prompt": "a", "stream": True}).encode()


def post(path: str, body: bytes, kind: str = "application/json") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def connected(gateway: LiveGateway) -> Iterator[ssl.SSLSocket]:
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        plain.settimeout(60)
        plain.connect(("127.0.0.1", gateway.settings.port))
        with untrusting().wrap_socket(plain) as tls:
            yield tls


def answer_of(client: ssl.SSLSocket) -> HTTPResponse:
    answer = HTTPResponse(client)
    answer.begin()
    return answer


def test_who_takes_nothing_is_let_go(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that reads nothing of its stream loses its connection after the time of an idle one, and the engine stops."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 3)
    engine.behaviour.raw_stream = STREAM
    with live_gateway(tmp_path, engine=engine) as gateway, connected(gateway) as client:
        state = gateway.server.server_state
        client.sendall(post("/v1/completions", ASKED))
        until(lambda: engine.requests)
        until(lambda: not state.connections and not state.tasks)
        until(lambda: engine.cancelled)


def test_who_takes_nothing_of_a_whole_answer_is_let_go(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one whose answer the gateway has handed over already: what waits in memory is for nobody."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 1)
    engine.behaviour.text = "x" * 8_000_000
    with live_gateway(tmp_path, engine=engine) as gateway, connected(gateway) as client:
        client.sendall(post("/v1/completions", PLAIN))
        until(lambda: engine.requests)
        until(lambda: not gateway.server.server_state.connections)


def test_who_is_slow_is_not_let_go(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that takes an answer of many MB steadily gets all of it, however long that is beyond the time of an idle one."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 2)
    engine.behaviour.text = "x" * 8_000_000
    with live_gateway(tmp_path, engine=engine) as gateway, connected(gateway) as client:
        client.sendall(post("/v1/completions", PLAIN))
        answer, [connection] = answer_of(client), gateway.server.server_state.connections
        taken, began = answer.read(1000), time.monotonic()
        while time.monotonic() < began + 5:
            taken += answer.read(10_000)
            time.sleep(0.02)
        assert not connection.transport.is_closing()
        assert len(taken + answer.read()) == int(answer.headers["content-length"])


def test_who_is_late_is_let_go(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one whose request's time is over before: it need not take the error that says so."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 3)
    engine.behaviour.raw_stream = STREAM
    with (
        live_gateway(tmp_path, engine=engine, request_seconds=3) as gateway,
        connected(gateway) as client,
    ):
        client.sendall(post("/v1/completions", ASKED))
        until(lambda: engine.cancelled == 1)
        until(lambda: not gateway.server.server_state.tasks)


def test_a_sealed_stream_ends_well(tmp_path: Path, engine: FakeEngine) -> None:
    """The time of a request ends while its client is behind: what the client takes then has no gap, and says why it ends."""
    engine.behaviour.raw_stream = STREAM
    with (
        live_gateway(tmp_path, engine=engine, request_seconds=3) as gateway,
        Sealer(gateway) as sealer,
        connected(gateway) as client,
    ):
        data, opener = sealer.seal(STREAMED)
        client.sendall(post(sealed.PATH, data, sealed.REQUEST_TYPE))
        until(lambda: engine.cancelled == 1)
        body = opener.feed(answer_of(client).read())
        opener.end()
        events, token = take_receipt(httpx.Headers(), body)
        receipt = verify_receipt(token, gateway.identity.statement.keys.receipt_ed25519)
        assert receipt.outcome is Outcome.ABORTED
        assert receipt.response.length == len(events)
        assert b"engine_timeout" in events.split(b"\n\n")[-2]


def test_an_answer_behind_others(tmp_path: Path, engine: FakeEngine) -> None:
    """A stream that could not even begin, since the answers before it were not taken, is an error in one piece."""
    engine.behaviour.text = "x" * 8_000_000  # one for the sockets' buffers, and one for the gateway's
    with (
        live_gateway(tmp_path, engine=engine, request_seconds=5) as gateway,
        connected(gateway) as client,
    ):
        plain = post("/v1/completions", PLAIN)
        client.sendall(plain + plain + post("/v1/completions", ASKED))
        until(lambda: engine.cancelled == 1)
        for _ in range(2):
            assert answer_of(client).read().endswith(b"}")
        late = answer_of(client)
        assert (late.status, json.loads(late.read())["error"]["code"]) == (504, "engine_timeout")


def test_who_goes_with_more_to_ask(
    tmp_path: Path, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that sends its next requests and goes away ends the one before, as any other: nothing is an error in the log."""
    engine.behaviour.delay = 3600
    gc.collect()  # what earlier tests left is logged when it is noticed
    caplog.clear()
    with live_gateway(tmp_path, engine=engine) as gateway:
        with connected(gateway) as client:
            client.sendall(post("/v1/completions", PLAIN) * 3)
            until(lambda: engine.requests)
        until(lambda: engine.cancelled == 1 and not gateway.server.server_state.tasks)
        assert len(engine.requests) == 1
        assert not caplog.records
