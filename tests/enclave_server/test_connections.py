"""What a connection can cost, and what is kept of one that is gone: nothing."""

from __future__ import annotations

import gc
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclave_server import server
from enclave_server.framing import MAX_HEAD
from tests.caller import Caller, untrusting
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

CHAT = b'{"model":"%b","messages":[{"role":"user","content":"hi"}]}' % MODEL.encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(CHAT)
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(CHAT), CHAT)
NOTHING = b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\n"

BODY = {"model": MODEL, "prompt": "a b c", "max_tokens": 64, "stream": True}


def _kept() -> int:
    """Connections that the gateway's process, which is this one, has in memory."""
    gc.collect()
    return sum(type(each).__qualname__.endswith("_protocol.<locals>.Protocol") for each in gc.get_objects())


def test_clients_that_vanish_are_let_go(engine: FakeEngine, tmp_path: Path) -> None:
    """Clients that go away while their streams end leave nothing behind, not even until the connection's idle time ends."""
    with (
        live_gateway(tmp_path, engine=engine) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        before = _kept()
        for _ in range(40):
            pieces = caller.stream("/v1/completions", BODY)
            assert next(pieces)
            pieces.close()
        until(lambda: _kept() <= before)


@pytest.fixture
def gateway(engine: FakeEngine, tmp_path: Path) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path, engine=engine) as live:
        yield live


def connect(gateway: LiveGateway) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", gateway.settings.port))
    plain.settimeout(10)
    return untrusting().wrap_socket(plain)


def answers(client: ssl.SSLSocket) -> bytes:
    """All that comes until the gateway closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def error_of(answer: bytes) -> tuple[bytes, str]:
    """Status and code of an answer in OpenAI's shape."""
    head, _, body = answer.partition(b"\r\n\r\n")
    code: str = json.loads(body)["error"]["code"]
    return head.split(b" ")[1], code


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (NOTHING + b"X: ", b"a"),
        (NOTHING, b"a: b\r\n"),
        (b"GET /v1/", b"a"),
        (CHUNKED + b"X: ", b"a"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a"),
    ],
    ids=["a header", "headers", "a path", "a trailer", "an extension of a chunk"],
)
def test_a_head_without_an_end(gateway: LiveGateway, begin: bytes, more: bytes) -> None:
    """What is not a body is bounded: the gateway ends the connection, with an error where there is no request under way."""
    with connect(gateway) as client:
        client.sendall(begin + more * (4 * MAX_HEAD // len(more)))
        answer = answers(client)
        if begin.startswith(b"GET"):
            assert error_of(answer) == (b"431", "head_too_large")
        else:
            assert answer == b""


def test_a_large_head(gateway: LiveGateway) -> None:
    """It is refused in OpenAI's shape; a body of the same size is no head."""
    with connect(gateway) as client:
        client.sendall(NOTHING + b"X: " + b"a" * (MAX_HEAD + 1))
        assert error_of(answers(client)) == (b"431", "head_too_large")
    with connect(gateway) as client:
        body = b'{"model":"%b"%b}' % (MODEL.encode(), b" " * 4 * MAX_HEAD)
        head = b"POST /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(body) + body)
        assert error_of(answers(client)) == (b"404", "not_found")


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\n"], ids=["nothing", "half a head"])
def test_a_head_that_does_not_come(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A connection without a request is closed after a while, however slowly one trickles in; one with a request is not."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.5)
    gateway.restart()
    with connect(gateway) as client:
        client.sendall(sent)
        client.settimeout(0.05)

        def closed() -> bool:
            try:
                return client.recv(1) == b""
            except TimeoutError:
                client.sendall(sent[:1])
                return False

        until(closed)
    gateway.engine.behaviour.delay = 1
    with connect(gateway) as client:
        client.sendall(POST + LENGTH + b"\r\n" + CHAT)
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


def test_trailers_are_no_headers(gateway: LiveGateway) -> None:
    """A nonce in the fields after a body is none, however the pieces arrive."""
    with connect(gateway) as client:
        client.sendall(CHUNKED + b"Attested-Nonce: AAAA\r\nConnection: close\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (b"hello\r\n\r\n", b"400", "invalid_http"),
        (POST + LENGTH + b"Content-Length: 3\r\n\r\n", b"400", "invalid_http"),
        (POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n", b"400", "invalid_http"),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"415", "unsupported_encoding"),
        (POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n" + LENGTH, b"400", "upgrade_unsupported"),
    ],
    ids=["not HTTP", "two lengths", "two framings", "a coding", "an upgrade"],
)
def test_requests_that_are_framed_oddly(
    gateway: LiveGateway, request_: bytes, status: bytes, code: str
) -> None:
    """What a balancer in front could have read otherwise is refused in OpenAI's shape, and the engine hears nothing."""
    with connect(gateway) as client:
        client.sendall(request_.replace(POST, POST + b"Connection: close\r\n") + b"\r\n" + CHAT)
        assert error_of(answers(client)) == (status, code)
    assert gateway.engine.requests == []
