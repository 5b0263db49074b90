"""The hot path over real sockets: bytes pass unchanged, and every answer has a receipt that verifies."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.receipt import Outcome, Usage
from enclave_server.app import App
from enclave_server.peek import DEFAULTS
from tests.caller import Caller, take_receipt, untrusting
from tests.enclave_server.inference.asking import CHAT, ask
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway


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
        base_url=gateway.origin, verify=untrusting(), timeout=60, trust_env=False
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
