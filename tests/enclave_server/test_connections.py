"""What a connection can cost, and what is kept of one that is gone: nothing."""

from __future__ import annotations

import gc
import json
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from attestation import sealed
from attestation._b64 import b64url_encode
from attestation.receipt import Outcome
from enclave_server import server
from enclave_server.framing import MAX_HEAD
from tests.caller import Caller, untrusting
from tests.enclave_server.test_sealed import STREAMED, Sealer, unsealed
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, gateway_settings, live_gateway

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
    plain.settimeout(60)
    return untrusting().wrap_socket(plain)


def answers(client: ssl.SSLSocket) -> bytes:
    """All that comes until the gateway closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_handshake_is_acknowledged_at_once(gateway: LiveGateway) -> None:
    """The kernel would do it after 40 ms, and a client that does not set TCP_NODELAY keeps its first request until then."""

    def unacknowledged(client: ssl.SSLSocket) -> bool:
        return any(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)[24:])  # tcpi_unacked

    waits = []
    for _ in range(10):
        with connect(gateway) as client:
            begun = time.monotonic()
            while unacknowledged(client):
                time.sleep(0.001)
            waits.append(time.monotonic() - begun)
    assert min(waits) < 0.02


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


@pytest.mark.parametrize(
    ("begin", "status", "code"),
    [
        (POST + b"Content-Length: 99999999\r\n\r\n", b"413", "request_too_large"),
        (POST + b"Connection: close\r\nContent-Length: 99999999\r\n\r\n", b"413", "request_too_large"),
        (
            POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2222222\r\n",
            b"413",
            "request_too_large",
        ),
        (POST.replace(b"1.1", b"1.0") + b"Content-Length: 99999999\r\n\r\n", b"413", "request_too_large"),
        (
            POST + b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2222222\r\n",
            b"415",
            "unsupported_encoding",
        ),
        (b"hello\r\n\r\n", b"400", "invalid_http"),
    ],
    ids=["kept", "closed", "chunked", "HTTP/1.0", "a coding", "not HTTP"],
)
def test_who_still_sends_hears_why(gateway: LiveGateway, begin: bytes, status: bytes, code: str) -> None:
    """A client whose request is refused before it is here may send on, and reads the answer after: no reset takes it away."""
    with connect(gateway) as client:
        client.sendall(begin)
        for _ in range(200):
            client.sendall(b"x" * 90_000)
        answer = client.recv(65536)
        while not answer.endswith(b"}}"):
            answer += client.recv(65536)
        assert error_of(answer) == (status, code)
        assert (b"\r\nattested-receipt: " in answer) is begin.startswith(POST[:4])


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

    def answered() -> bool:
        """Or it took longer than that until the head was there, on a machine that had other work."""
        with connect(gateway) as client, suppress(OSError):
            client.sendall(POST + LENGTH + b"\r\n" + CHAT)
            return client.recv(65536).startswith(b"HTTP/1.1 200")
        return False

    until(answered)


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01"], ids=["nothing", "half a record"])
def test_tls_that_is_not_agreed_on(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A connection whose handshake does not end is closed, long before a minute is over."""
    monkeypatch.setattr(server, "HANDSHAKE_SECONDS", 0.5)
    gateway.restart()
    with socket.create_connection(("127.0.0.1", gateway.settings.port)) as client, suppress(ConnectionError):
        client.settimeout(50)
        client.sendall(said)
        assert client.recv(1) == b""


def test_a_connection_that_rests(gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is closed when the time of an idle one is over since its last answer, not since it was made."""
    monkeypatch.setattr(server, "IDLE_SECONDS", 1.5)
    gateway.restart()
    gateway.engine.behaviour.delay = 0.4

    def rested() -> bool:
        """Or it took longer than that until the head was there, on a machine that had other work."""
        began = time.monotonic()
        with connect(gateway) as client, suppress(OSError):
            client.sendall(POST + LENGTH + b"\r\n" + CHAT)
            if client.recv(65536).startswith(b"HTTP/1.1 200"):
                assert answers(client) == b""
                assert time.monotonic() - began > 1.85
                return True
        return False

    until(rested)


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
        (POST.replace(b"1.1", b"2.0") + LENGTH, b"400", "invalid_http"),
        (b"GET /v1/models\r\n", b"400", "invalid_http"),
        (POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\n" + LENGTH, b"400", "upgrade_unsupported"),
    ],
    ids=["not HTTP", "two lengths", "two framings", "a coding", "HTTP/2.0", "HTTP/0.9", "an upgrade"],
)
def test_requests_that_are_framed_oddly(
    gateway: LiveGateway, request_: bytes, status: bytes, code: str
) -> None:
    """What a balancer in front could have read otherwise is refused in OpenAI's shape, and the engine hears nothing."""
    with connect(gateway) as client:
        client.sendall(request_.replace(POST, POST + b"Connection: close\r\n") + b"\r\n" + CHAT)
        assert error_of(answers(client)) == (status, code)
    assert gateway.engine.requests == []


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "a plain answer"])
def test_an_answer_of_http_1_0(gateway: LiveGateway, stream: bool) -> None:
    """Nothing of it is in chunks: a stream ends where its connection does, after its receipt; also where the client would keep it."""
    body = json.dumps({**BODY, "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n"
    with Caller(gateway.origin, gateway.policy_text) as caller, connect(gateway) as client:
        client.sendall(head + b"Attested-Nonce: %b\r\n" % b64url_encode(bytes(32)).encode())
        client.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        answer = whole(answers(client), gateway.origin + "/v1/completions")
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        checked = caller.check(answer, bytes(32), body)
    assert checked.outcome is Outcome.COMPLETE
    assert checked.body.endswith(b"data: [DONE]\n\n") is stream


def test_a_sealed_stream_of_http_1_0(gateway: LiveGateway) -> None:
    """Its chunks are those of the seal alone."""
    with Sealer(gateway) as sealer, connect(gateway) as client:
        data, opener = sealer.seal(STREAMED)
        head = b"POST /sealed HTTP/1.0\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % (sealed.REQUEST_TYPE.encode(), len(data)) + data)
        inside = unsealed(whole(answers(client), gateway.origin + sealed.PATH), opener)
        assert sealer.receipt(inside).outcome is Outcome.COMPLETE


def whole(data: bytes, url: str) -> httpx.Response:
    """What came until the end of a connection, as one answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
    request = httpx.Request("POST", url)
    return httpx.Response(int(status.split(" ")[1]), headers=headers, content=body, request=request)


def begun(gateway: LiveGateway) -> ssl.SSLSocket:
    """A connection whose request is under way: the gateway waits for its body."""
    client = connect(gateway)
    client.sendall(POST + LENGTH + b"Connection: close\r\nExpect: 100-continue\r\n\r\n")
    assert client.recv(65536).startswith(b"HTTP/1.1 100")
    return client


def test_more_connections_than_places(engine: FakeEngine, tmp_path: Path) -> None:
    """Who has been without a request longest makes room; a request under way is finished, and a newcomer is answered."""
    with ExitStack() as held:
        gateway = held.enter_context(live_gateway(tmp_path, engine=engine, max_connections=8))
        busy = held.enter_context(begun(gateway))
        idle = [held.enter_context(connect(gateway)) for _ in range(20)]
        assert [client.recv(1) for client in idle[:13]] == [b""] * 13
        assert len(gateway.server.server_state.connections) <= 8
        newest = idle[-1]
        newest.sendall(NOTHING + b"\r\n")
        assert newest.recv(65536).startswith(b"HTTP/1.1 404")
        busy.sendall(CHAT)
        assert answers(busy).startswith(b"HTTP/1.1 200")


def test_nobody_waits_but_the_newcomer(engine: FakeEngine, tmp_path: Path) -> None:
    """Where every connection has a request under way, it is the new one that is closed."""
    with live_gateway(tmp_path, engine=engine, max_connections=1) as gateway, begun(gateway) as busy:
        with connect(gateway) as late:
            assert late.recv(1) == b""
        busy.sendall(CHAT)
        assert answers(busy).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("files", "most"), [(resource.RLIM_INFINITY, 4096), (65536, 4096), (1024, 704), (64, 1)]
)
def test_connections_leave_files_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    """A process that may open few files takes fewer connections, so that requests can still be passed on."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert server.most_connections(gateway_settings(tmp_path)) == most
