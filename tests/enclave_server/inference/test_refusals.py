"""Requests that never reach the engine: other routes, bodies that are none, too large, too slow."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.receipt import Outcome
from tests.caller import Caller, untrusting
from tests.enclave_server.inference.asking import CHAT, ask
from tests.servers import FakeEngine, LiveGateway, live_gateway


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


@pytest.mark.parametrize("target", ["/v1/models?" + "x" * 2048, "/v1/" + "x" * 60_000], ids=["query", "path"])
def test_more_than_a_receipt_repeats(caller: Caller, engine: FakeEngine, target: str) -> None:
    """A path that no receipt could name is refused without one, whether there is such a route or not."""
    answer = caller.http.get(target)
    assert (answer.status_code, answer.json()["error"]["code"]) == (414, "target_too_long")
    assert "attested-receipt" not in answer.headers
    assert engine.requests == []
    assert caller.get("/v1/models?" + "x" * (2048 - len("/v1/models"))).outcome is Outcome.COMPLETE


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
