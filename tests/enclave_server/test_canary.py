"""A marked prompt and a marked key, through every route there is and every way in: nothing that the gateway writes has them."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from client_sdk import OpenAI
from enclave_server.routes import ROUTES, Kind
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.fake_vllm import starts
from tests.enclave_server.test_audio import form
from tests.processes import until
from tests.served import Served, everything_written, served
from tests.servers import MODEL, free_port

CANARY = "Canary3b8d1fXyzzyError"
LIMIT = 100_000
TOO_LONG = f"{CANARY} " * (LIMIT // len(CANARY))
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}]}


@pytest.fixture
def numbers_port() -> int:
    return free_port()


@pytest.fixture
def gateway(tmp_path: Path, numbers_port: int) -> Iterator[Served]:
    """With all that can be switched on to write something: keys and their usage, a log of receipts, numbers."""
    values = {
        **fake_settings(tmp_path),
        "access": "keys",
        "usage_flush_seconds": 0.1,
        "log_dir": str(tmp_path / "gateway" / "receipts"),
        "metrics_port": numbers_port,
        "max_request_bytes": LIMIT,
        "drain_seconds": 1,
    }
    with served(tmp_path / "gateway", **values) as running:
        yield running


@pytest.mark.timeout(900)  # some seven hundred requests
def test_every_route_and_every_way_in(gateway: Served, numbers_port: int, tmp_path: Path) -> None:
    """Log, databases, log of receipts, numbers and the engine's folder have neither; the answers were the engine's own."""
    key = gateway.run("keys", "create", "one").strip()
    private = Path(starts(tmp_path / "python")[0]["environment"]["HOME"])
    with Caller(gateway.origin, gateway.policy()) as caller:
        caller.http.headers["authorization"] = f"Bearer {key}"
        until(lambda: caller.get("/v1/models").status == 200)
        assert CANARY.encode() in caller.post("/v1/chat/completions", CHAT).body
        for path in ROUTES:
            statuses = [answer.status for answer in asked(caller, path.decode())]
            assert 400 in statuses or path == b"/v1/models", (path, statuses)
        leave(caller)
    sealed(gateway, key, tmp_path)
    half_a_body(gateway, key)
    until(lambda: json.loads(gateway.run("keys", "usage", "--json")))
    numbers = httpx.get(f"http://127.0.0.1:{numbers_port}/metrics", trust_env=False).text
    assert "enclave_requests_total" in numbers
    gateway.terminate()
    written = everything_written(tmp_path / "gateway", private) + numbers.encode()
    assert b"engine message" in written  # it printed each prompt
    assert CANARY.encode() not in written
    assert key.encode() not in written


def asked(caller: Caller, path: str) -> Iterator[Any]:
    """The mark in all fields at once, in each alone, in a name, in what is too large, and in what breaks off."""
    route = ROUTES[path.encode()]
    if route.kind is Kind.NOTHING:
        yield caller.get(f"{path}?{CANARY}")
        return
    bodies: list[dict[str, Any]] = [
        dict.fromkeys(route.fields, CANARY),
        *({"model": MODEL, name: CANARY} for name in sorted(route.fields - {"file", "model"})),
        {name: [{"content": CANARY, "type": CANARY}] for name in sorted(route.fields)},
        {"model": MODEL, CANARY: CANARY},
        {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], "prompt": CANARY, "stream": True},
        {"model": CANARY},  # the stand-in fails on this one, with a traceback
    ]
    for body in bodies:
        if route.kind is Kind.FORM:
            fields = {name: value for name, value in body.items() if isinstance(value, str)}
            yield caller.post(path, *form(CANARY.encode(), **fields))
        else:
            yield caller.post(path, body)
    whole = json.dumps(CHAT).encode()
    yield caller.post(path, whole[:-2])
    yield caller.post(path, whole, {"Content-Encoding": CANARY, CANARY: CANARY})
    yield caller.call("PUT", path, whole)
    refused = caller.http.post(path, content=json.dumps({"prompt": TOO_LONG}).encode())
    assert refused.status_code == 413


def leave(caller: Caller) -> None:
    """In the middle of a stream."""
    pieces = caller.stream("/v1/chat/completions", {**CHAT, "stream": True})
    next(pieces)
    pieces.close()


def sealed(gateway: Served, key: str, folder: Path) -> None:
    """A chat and a stream inside of a seal, where the key is too; and one that is refused there."""
    policy = folder / "policy.toml"
    policy.write_text(gateway.policy())
    with OpenAI(base_url=f"{gateway.origin}/v1", policy=policy, api_key=key, max_retries=0) as client:
        asking: Any = client.with_raw_response.chat.completions.create
        assert CANARY in asking(**CHAT).text
        streamed: Any = client.chat.completions.create(**CHAT, stream=True)  # type: ignore[call-overload]
        assert CANARY in "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
        with pytest.raises(openai.BadRequestError, match="no such field"):
            asking(**CHAT, extra_body={CANARY: CANARY})


def half_a_body(gateway: Served, key: str) -> None:
    """That of a client which goes away; and what is no HTTP at all."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Length: 900\r\n\r\n"
    for words in (head + CANARY, f"{CANARY} {key}\r\n\r\n"):
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as plain,
            untrusting().wrap_socket(plain) as client,
        ):
            client.sendall(words.encode())
    assert gateway.ready()
