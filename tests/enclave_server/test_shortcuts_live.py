"""With the short ways past uvicorn's `send` and `receive` and without them, a connection carries the same bytes (ADR 45)."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import cycle
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from attestation import sealed
from attestation.receipt import verify_receipt
from enclave_server.app import App
from enclave_server.asgi import Receive, Scope, Send
from tests.caller import untrusting
from tests.enclave_server.test_sealed import ASKED, STREAMED, Sealer
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, free_port, live_gateway

NONCE = b"Attested-Nonce: " + b"A" * 43
LAST = b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + NONCE + b"\r\n\r\n"
TARGETS = [
    *[b"/v1/completions"] * 6,
    b"/v1/completions?a=b",
    b"http://x/v1/completions",
    b"/v1/models",
    b"/v1/nothing",
    b"/v1",
    b"/v1/" + b"a" * 2048,
    b"/sealed",
    b"/healthz",
]
BODIES = [
    *[{"model": MODEL, "prompt": "a" * size, "stream": streams} for size in (1, 20_000) for streams in (False, True)],
    {"model": MODEL, "prompt": "a", "unknown": 1},
    {},
]  # fmt: skip
FIELDS = [
    b"Connection: keep-alive",
    b"Expect: 100-continue",
    b"Content-Encoding: gzip",
    b"X: \xff",
    b"Host: y",
    b"Content-Type: " + sealed.REQUEST_TYPE.encode(),
]
_RECEIPT = re.compile(rb"(attested-receipt: |: attested )(\S+)")
_COUNTED = re.compile(r"^(enclave_(?:requests|refused|tokens)_total.*|enclave_\w+_count.*) (\S+)$", re.MULTILINE)  # fmt: skip


class Ways:
    """ASGI middleware that is in the way of the short ones, or is not."""

    short = True

    def around(self, app: App) -> App:
        async def asked(scope: Scope, receive: Receive, send: Send) -> None:
            async def received() -> Any:
                return await receive()

            async def sent(message: dict[str, Any]) -> None:
                await send(message)

            own = self.short or scope["type"] != "http"
            await app(scope, receive if own else received, send if own else sent)

        return asked


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ways, LiveGateway]]:
    folder, ways = tmp_path_factory.mktemp("ways"), Ways()
    how: dict[str, Any] = {
        "checkpoint_seconds": 3600,
        "metrics_host": "127.0.0.1",
        "metrics_port": free_port(),
    }
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=ways.around, **how) as gateway,
    ):
        yield ways, gateway


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One that HTTP allows, whatever becomes of it."""
    method = draw(st.sampled_from([*[b"POST"] * 5, b"GET", b"HEAD", b"PUT"]))
    target, fields = draw(st.sampled_from(TARGETS)), draw(st.lists(st.sampled_from(FIELDS), max_size=2))
    body = draw(st.sampled_from([b"", b"none", *[json.dumps(body).encode() for body in BODIES]]))
    pieces = draw(st.lists(st.integers(1, 5000), max_size=4))
    if pieces:
        fields, body = [*fields, b"Transfer-Encoding: chunked"], _chunked(body, pieces)
    elif body or method == b"POST":
        fields = [*fields, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"Host: x", NONCE, *fields, b"", body])


def _chunked(body: bytes, sizes: list[int]) -> bytes:
    parts, at = [], 0
    for size in cycle(sizes):
        part = body[at : at + size]
        parts.append(b"%x;a=b\r\n%b\r\n" % (len(part), part))
        at += size
        if not part:
            return b"".join(parts[:-1]) + b"0\r\nX-Trailer: a\r\n\r\n"
    raise AssertionError


def exchanged(gateway: LiveGateway, data: bytes, cuts: list[int]) -> bytes:
    """What comes for it until the gateway closes; it leaves in pieces of these sizes."""
    parts, at = [], 0
    with (
        socket.create_connection(("127.0.0.1", gateway.settings.port), 60) as plain,
        untrusting().wrap_socket(plain) as tls,
    ):
        tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for size in cycle(cuts):
            if at >= len(data):
                break
            tls.sendall(data[at : at + size])
            at += size
        while part := tls.recv(65536):
            parts.append(part)
    return b"".join(parts)


def without_chance(gateway: LiveGateway, data: bytes) -> bytes:
    """Without what differs between the same answers: the receipt's number, time and signature, and where a stream was cut."""
    data = re.sub(rb"\r\n[0-9a-f]+\r\n(?=data: |: attested )", b"", data)

    def claims(match: re.Match[bytes]) -> bytes:
        receipt = verify_receipt(match[2].decode(), gateway.identity.statement.keys.receipt_ed25519)
        told = (receipt.request, receipt.response, receipt.outcome, receipt.usage, receipt.checkpoints)
        return match[1] + repr(told).encode()

    return _RECEIPT.sub(claims, data)


def numbers(gateway: LiveGateway) -> Mapping[str, float]:
    with urlopen(f"http://127.0.0.1:{gateway.settings.metrics_port}/metrics") as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in _COUNTED.findall(text)}


@settings(max_examples=40)
@given(
    asked=st.lists(requests(), min_size=1, max_size=4),
    cuts=st.lists(st.sampled_from([7, 100, 1500, 100_000]), min_size=1, max_size=4).filter(lambda c: max(c) > 7),
)  # fmt: skip
def test_the_same_exchanges(served: tuple[Ways, LiveGateway], asked: list[bytes], cuts: list[int]) -> None:
    """Whatever is asked, however it is cut: the same answers, numbers and lines in the log, and nothing is left under way."""
    ways, gateway = served
    seen = []
    for ways.short in (True, False):
        before = numbers(gateway)
        with capture_logs() as lines:
            answers = without_chance(gateway, exchanged(gateway, b"".join([*asked, LAST]), cuts))
            until(lambda: not gateway.server.server_state.tasks)  # it counts after it has answered
        after = numbers(gateway)
        counted = {name: after[name] - before.get(name, 0) for name in after}
        seen.append((answers, {name: more for name, more in counted.items() if more}, lines))
    assert seen[0] == seen[1]
    assert seen[0][0].count(b"\nattested-receipt: ") + seen[0][0].count(b": attested ") >= 1


@pytest.mark.parametrize("body", [ASKED, STREAMED, {"model": 1}], ids=["plain", "stream", "refused"])
def test_the_same_inside_a_seal(served: tuple[Ways, LiveGateway], body: dict[str, Any]) -> None:
    """The same from outside and within; where a stream is cut into chunks is chance."""
    ways, gateway = served
    seen = []
    for ways.short in (True, False):
        with closing(Sealer(gateway).http) as http:
            data, opener = Sealer(gateway).seal(body)
            kind = {"content-type": sealed.REQUEST_TYPE}
            answer = http.post(sealed.PATH, content=data, headers=kind)
            inside = opener.feed(answer.content)
            opener.end()
            assert opener.head is not None
            fields = [b"%b: %b" % (n.encode(), v.encode()) for n, v in opener.head.headers]
            within = without_chance(gateway, b"\n".join([b"%d" % opener.head.status, *fields, inside]))
            seen.append((answer.headers, within))  # where a length is told, it is among the headers
    assert seen[0] == seen[1]
