"""The proxy's HTTP, in raw bytes: what callers send that no well-behaved client would."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_sdk.proxy import http as proxy_http
from tests.client_sdk.live_proxy import ASKED, CHAT, STREAMED, LiveProxy, live_proxy, rest
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, live_gateway

BODY = json.dumps(ASKED).encode()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway, LiveProxy]]:
    """A proxy that nothing sent to it may break."""
    folder = tmp_path_factory.mktemp("proxy")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine) as gateway,
        live_proxy(folder, gateway.policy_text, gateway.origin) as proxy,
    ):
        yield engine, gateway, proxy


@pytest.fixture
def engine(rig: tuple[FakeEngine, LiveGateway, LiveProxy]) -> FakeEngine:
    """Its engine, well again."""
    rig[0].reset()
    return rig[0]


@pytest.fixture
def proxy(rig: tuple[FakeEngine, LiveGateway, LiveProxy], engine: FakeEngine) -> LiveProxy:
    """The proxy."""
    return rig[2]


def post(body: bytes = BODY, *, version: str = "1.1", extra: str = "Connection: close\r\n") -> bytes:
    head = f"POST {CHAT} HTTP/{version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def test_two_requests_at_once_on_one_connection(proxy: LiveProxy) -> None:
    """A caller that does not wait gets its answers in order."""
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = get.replace(b"Host", b"Connection: close\r\nHost")
    answer = proxy.raw(get + post(extra="") + last)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.index(b'"object": "list"') < answer.index(b"You said: hello")


def test_a_request_in_single_bytes(proxy: LiveProxy) -> None:
    """Where reads end means nothing."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.settimeout(60)
        for byte in post():
            caller.sendall(bytes([byte]))
        assert b"You said: hello" in rest(caller)


def test_a_body_in_chunks(proxy: LiveProxy, engine: FakeEngine) -> None:
    """The enclave gets the body, without the chunks it came in."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:]))
    head = (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        % CHAT.encode()
    )
    assert b"You said: hello" in proxy.raw(head + chunks + b"0\r\n\r\n")
    assert engine.requests[-1].body == BODY


def test_expect_continue(proxy: LiveProxy) -> None:
    """A caller that asks first is told to go on."""
    with socket.create_connection(("127.0.0.1", proxy.port)) as caller:
        caller.settimeout(60)
        head, body = post(extra="Expect: 100-continue\r\nConnection: close\r\n").split(b"\r\n\r\n", 1)
        caller.sendall(head + b"\r\n\r\n")
        assert caller.recv(100) == b"HTTP/1.1 100 \r\n\r\n"
        caller.sendall(body)
        assert b"You said: hello" in rest(caller)


def test_http_1_0_gets_a_stream_whole_or_not_at_all(proxy: LiveProxy, engine: FakeEngine) -> None:
    """Such a caller could not tell a cut stream from a whole one: it gets a length, or an error."""
    body = json.dumps(STREAMED).encode()
    whole = proxy.raw(post(body, version="1.0"))
    head, _, events = whole.partition(b"\r\n\r\n")
    assert f"content-length: {len(events)}".encode() in head
    assert events.endswith(b"data: [DONE]\n\n")
    engine.behaviour.die_after = 2
    broken = proxy.raw(post(body, version="1.0"))
    assert broken.startswith(b"HTTP/1.1 502")
    assert json.loads(broken.partition(b"\r\n\r\n")[2])["error"]["code"] == "receipt.outcome"


BAD: dict[str, tuple[int, bytes]] = {
    "no HTTP": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    "no Host": (400, b"GET /v1/models HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"),
    "HTTP/1.0 without Host": (403, b"GET /v1/models HTTP/1.0\r\n\r\n"),
    "two lengths": (
        400,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ),
    "a broken chunk": (
        400,
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    "a head without end": (
        431,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * proxy_http.MAX_HEAD_BYTES,
    ),
    "a whole URL as target": (
        404,
        b"GET http://evil.example/v1/models HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n",
    ),
    "another host inside the target": (
        404,
        b"GET //evil/v1/models HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n",
    ),
    "a tunnel": (404, b"CONNECT evil.example:443 HTTP/1.1\r\nConnection: close\r\nHost: localhost\r\n\r\n"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_request(proxy: LiveProxy, engine: FakeEngine, case: str) -> None:
    """Refused in OpenAI's shape, without asking an enclave; the proxy lives on."""
    status, data = BAD[case]
    answer = proxy.raw(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert not engine.requests
    assert b"You said: hello" in proxy.raw(post())


@pytest.mark.parametrize("declared", [True, False], ids=["with a length", "in chunks"])
def test_huge_bodies(proxy: LiveProxy, engine: FakeEngine, declared: bool) -> None:
    """A body over the limit is refused while it is still coming; the answer arrives all the same."""
    piece = b"x" * 2**20
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {2**40}\r\n\r\n" if declared else "Transfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port)) as caller:
        caller.settimeout(60)
        caller.sendall(head.encode())
        for _ in range(proxy_http.MAX_BODY_BYTES // len(piece) + 1):
            caller.sendall(piece if declared else b"100000\r\n" + piece + b"\r\n")
        assert rest(caller).startswith(b"HTTP/1.1 413 ")
    assert not engine.requests


def test_a_large_body(proxy: LiveProxy, engine: FakeEngine) -> None:
    """Ten megabytes arrive as they are."""
    text = "x" * (10 * 2**20)
    body = json.dumps({**ASKED, "messages": [{"role": "user", "content": text}]}).encode()
    engine.behaviour.text = "much"
    assert b'"content": "much"' in proxy.raw(post(body))
    assert engine.requests[-1].body == body


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("how", ["closes", "closes its sending side", "resets"])
def test_a_caller_that_goes_away(proxy: LiveProxy, engine: FakeEngine, streamed: bool, how: str) -> None:
    """The engine's work for it ends; its half-closed connection is closed too."""
    engine.behaviour.hang_after = 2
    cancelled = engine.cancelled
    abandoned = proxy.proxy.counts.abandoned
    with socket.create_connection(("127.0.0.1", proxy.port)) as caller:
        caller.sendall(post(json.dumps(STREAMED if streamed else ASKED).encode()))
        until(lambda: engine.requests)
        if streamed:
            caller.recv(10)
        if how == "resets":
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        if how == "closes its sending side":
            caller.shutdown(socket.SHUT_WR)
            caller.settimeout(60)
            answer = rest(caller)
            assert not answer.endswith(b"0\r\n\r\n")
    until(lambda: engine.cancelled == cancelled + 1)
    until(lambda: proxy.proxy.counts.abandoned == abandoned + 1)
    assert proxy.proxy.counts.under_way == 0
    until(lambda: not proxy.running.server._connections)


def test_a_caller_that_stops_reading_does_not_hold_up_others(proxy: LiveProxy, engine: FakeEngine) -> None:
    """Its stream waits; nothing grows, and others are answered."""
    engine.behaviour.text, engine.behaviour.chunks = "x" * 20_000_000, 40
    with socket.create_connection(("127.0.0.1", proxy.port)) as slow:
        slow.sendall(post(json.dumps(STREAMED).encode()))
        until(lambda: engine.requests)
        engine.behaviour.text = "quick"
        assert b'"content": "quick"' in proxy.raw(post())


def test_stopping(tmp_path: Path, rig: tuple[FakeEngine, LiveGateway, LiveProxy], engine: FakeEngine) -> None:
    """A stream that is under way ends well; idle connections are closed and new ones refused at once."""
    gateway = rig[1]
    engine.behaviour.delay = 0.1
    with live_proxy(tmp_path, gateway.policy_text, gateway.origin) as proxy:
        idle = socket.create_connection(("127.0.0.1", proxy.port))
        with idle, socket.create_connection(("127.0.0.1", proxy.port)) as caller:
            caller.settimeout(60)
            caller.sendall(post(json.dumps(STREAMED).encode()))
            begun = caller.recv(100)
            proxy.worker.run(proxy.running.server.stop(10))
            assert (begun + rest(caller)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port))
