"""An identity that takes over from another one, as clients see it: over real connections, with a clock that is moved."""

from __future__ import annotations

import gc
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation import sealed
from attestation.binding import Statement
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.receipt import Outcome, verify_receipt
from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import RequestHead
from client_sdk import attested_transport
from client_sdk.tls import pinned_context
from enclave_server.exchange import Exchange
from enclave_server.identity import Identity, ReceiptNumbers, TlsContext
from tests.caller import Caller, take_receipt, untrusting
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, free_port, live_gateway

CHAT = "/v1/chat/completions"
ASKED = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
OVERLAP = 120 * 60.0


@pytest.fixture
def caller(gateway: LiveGateway) -> Iterator[Caller]:
    """A client that verified the first identity, with a connection to its TLS key."""
    with Caller(gateway.origin, gateway.policy_text) as verified:
        verified.http.get("/healthz")
        yield verified


def end(gateway: LiveGateway, identity: Identity, left: float = 0) -> None:
    """Move the gateway's clock to so many seconds before `identity` ends."""
    gateway.ahead = 0.0
    gateway.ahead = gateway.identities.seconds_left(identity) - left


def another(gateway: LiveGateway) -> Caller:
    return Caller(gateway.origin, gateway.policy_text)


def key_of(gateway: LiveGateway) -> bytes:
    """The statement whose key a new connection shows."""
    with another(gateway) as caller:
        return caller.verdict.statement_digest


def seal(identity: Identity, body: Any = ASKED) -> tuple[bytes, AnswerOpener]:
    headers = (("content-type", "application/json"), ("attested-nonce", "A" * 43))
    return sealed.seal_request(
        RequestHead(method="POST", target=CHAT, headers=headers),
        json.dumps(body).encode(),
        keys=identity.statement.keys,
        statement=identity.statement_digest,
        now=datetime.now(UTC),
    )


def post(gateway: LiveGateway, data: bytes) -> httpx.Response:
    kind = {"content-type": sealed.REQUEST_TYPE}
    url = gateway.origin + sealed.PATH
    return httpx.post(url, content=data, headers=kind, verify=untrusting(), trust_env=False)


def open_connections(gateway: LiveGateway) -> int:
    """Those that the gateway has not begun to close; clients that sleep have not heard of it yet."""
    connections = list(gateway.server.server_state.connections)
    return sum(not connection.transport.is_closing() for connection in connections)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_a_connection_stays_with_its_statement(gateway: LiveGateway, caller: Caller) -> None:
    """What comes over a connection to the old key is answered and signed under the old statement, as long as that lives."""
    first = gateway.identity
    gateway.succeed()
    assert caller.chat("hello").receipt.statement == first.statement_digest
    assert caller.chat("hello", stream=True).receipt.statement == first.statement_digest
    assert caller.chat("hello", nonsense=1).receipt.statement == first.statement_digest


def test_a_new_connection_gets_the_new_key(gateway: LiveGateway, caller: Caller) -> None:
    """Evidence, TLS key and receipts of a new connection are the successor's, whether or not it names a server."""
    first = gateway.identity
    gateway.succeed()
    second = gateway.identity
    assert key_of(gateway) == second.statement_digest != first.statement_digest
    with another(gateway) as new:
        assert new.chat("hello").receipt.statement == second.statement_digest
    for name in (None, "enclave.example"):
        pinned = pinned_context(second.statement.keys.tls_spki_sha256)
        with httpx.Client(verify=pinned, trust_env=False) as client:
            options = {} if name is None else {"sni_hostname": name}
            assert client.get(f"{gateway.origin}/healthz", extensions=options).status_code == 200


def test_the_old_key_is_no_longer_shown(gateway: LiveGateway) -> None:
    """A client that pins the old key is refused in the handshake, so it verifies anew before it sends anything."""
    old = pinned_context(gateway.identity.statement.keys.tls_spki_sha256)
    gateway.succeed()
    with httpx.Client(verify=old, trust_env=False) as client, pytest.raises(VerificationError) as caught:
        client.get(f"{gateway.origin}/healthz")
    assert caught.value.check is Check.CHANNEL_TLS_KEY


def test_no_resumption(gateway: LiveGateway) -> None:
    """Also after a rollover a connection has no ticket to come back with."""
    gateway.succeed()
    context = untrusting()
    host, port = gateway.origin.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port))) as plain,
        context.wrap_socket(plain, server_hostname=host) as tls,
    ):
        tls.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert tls.recv(100).startswith(b"HTTP/1.1 200")
        assert (tls.version(), tls.session is None or not tls.session.has_ticket) == ("TLSv1.3", True)


def test_a_seal_decides_by_its_own_statement(gateway: LiveGateway, caller: Caller) -> None:
    """Sealed to the old statement, over whatever connection: answered under the old one; to the new one: under the new."""
    first = gateway.identity
    gateway.succeed()
    kind = {"content-type": sealed.REQUEST_TYPE}
    with httpx.Client(verify=untrusting(), base_url=gateway.origin, trust_env=False) as new:
        for identity, client in product((first, gateway.identity), (caller.http, new)):
            data, opener = seal(identity)
            inside = opener.feed(client.post(sealed.PATH, content=data, headers=kind).content)
            assert opener.head is not None
            _, token = take_receipt(httpx.Headers(opener.head.headers), inside)
            receipt = verify_receipt(token, identity.statement.keys.receipt_ed25519)
            assert receipt.statement == identity.statement_digest


def test_a_replay_is_refused_across_a_rollover(gateway: LiveGateway, engine: FakeEngine) -> None:
    """What was answered before the rollover is not answered after it, neither under its own statement nor under another's name."""
    data, _ = seal(gateway.identity)
    assert post(gateway, data).status_code == 200
    gateway.succeed()
    assert refusal(post(gateway, data)) == (409, "sealed_replay")
    moved = data[:7] + gateway.identity.statement_digest + data[39:]
    assert refusal(post(gateway, moved)) == (409, "sealed_replay")
    fresh, _ = seal(gateway.identity)
    moved = data[:7] + gateway.identity.statement_digest + fresh[39:1159] + data[1159:]
    assert refusal(post(gateway, moved)) == (400, "sealed_open")
    assert post(gateway, fresh).status_code == 200, "what somebody else tried with its key was not remembered"
    assert len(engine.requests) == 2


def test_sealed_to_a_statement_that_has_ended(gateway: LiveGateway, engine: FakeEngine) -> None:
    """After its end nothing is opened with the old key, whether or not it is still remembered; the name says what to do."""
    first = gateway.identity
    data, _ = seal(first)
    gateway.succeed()
    end(gateway, first)
    for _ in range(2):
        assert refusal(post(gateway, data)) == (422, "sealed_key")
        until(lambda: gateway.identities.count == 1)
    assert not engine.requests


def test_sealed_to_a_statement_that_is_ending(gateway: LiveGateway, engine: FakeEngine) -> None:
    """In the last quarter of the overlap nothing more is begun, so that what is under way can end; until then it is."""
    first = gateway.identity
    gateway.succeed()
    end(gateway, first, OVERLAP / 3)
    assert post(gateway, seal(first)[0]).status_code == 200
    end(gateway, first, OVERLAP / 5)
    assert refusal(post(gateway, seal(first)[0])) == (422, "sealed_key")
    assert post(gateway, seal(gateway.identity)[0]).status_code == 200
    assert len(engine.requests) == 2


def test_connections_are_closed_at_the_end(gateway: LiveGateway, caller: Caller) -> None:
    """An idle connection to the key of a statement that has ended is closed; one to the current key is not."""
    first = gateway.identity
    gateway.succeed()
    with another(gateway) as new:
        assert open_connections(gateway) == 2
        end(gateway, first)
        until(lambda: open_connections(gateway) == 1)
        assert new.chat("hello").status == 200
        old = caller.http.get("/.well-known/attestation?nonce=" + "A" * 43)
        assert b"tag:attested-inference" in old.content, "it comes over a new connection"


def kept(statement: bytes) -> set[type]:
    """What this process still has of an identity's private keys."""
    gc.collect()
    found = [
        thing for thing in gc.get_objects() if type(thing) in {Identity, TlsContext}
    ]  # asks no other object
    named = [(type(thing), getattr(thing, "statement_digest", thing.statement)) for thing in found]
    return {kind for kind, digest in named if digest == statement}


def test_ended_keys_are_dropped(gateway: LiveGateway) -> None:
    """When a statement has ended and its answers are given, no private key of it is left in memory."""
    statement = gateway.identity.statement_digest
    with another(gateway) as caller:
        caller.chat("hello")
        caller.chat("hello", stream=True)
    gateway.succeed()
    assert kept(statement) == {Identity, TlsContext}
    gateway.ahead = 7 * 86400
    until(lambda: gateway.identities.count == 1)
    with another(gateway) as caller:
        caller.chat("hello")
    until(lambda: not kept(statement))
    assert kept(gateway.identity.statement_digest) == {Identity, TlsContext}


def test_connections_are_led_away_before_the_end(gateway: LiveGateway, caller: Caller) -> None:
    """In the last quarter of the overlap an answer over a connection to the old key is its last, so none is cut in two."""
    first = gateway.identity
    gateway.succeed()
    end(gateway, first, OVERLAP / 2)
    assert "connection" not in caller.chat("hello").headers
    end(gateway, first, OVERLAP / 5)
    assert caller.chat("hello").headers["connection"] == "close"
    with another(gateway) as new:
        assert "connection" not in new.chat("hello").headers


def test_a_request_on_a_connection_that_has_ended(gateway: LiveGateway, caller: Caller) -> None:
    """When it comes before the connection is closed: a refusal, signed under the current statement, and nothing is done."""
    first, engine = gateway.identity, gateway.engine
    gateway.succeed()
    second = gateway.identity
    gateway.identities.forget = list  # type: ignore[method-assign]  # nobody looks who has ended
    end(gateway, first)
    answer = caller.http.post(CHAT, json=ASKED)
    assert refusal(answer) == (421, "statement_ended")
    assert answer.headers["connection"] == "close"
    receipt = verify_receipt(answer.headers["attested-receipt"], second.statement.keys.receipt_ed25519)
    assert (receipt.statement, receipt.outcome) == (second.statement_digest, Outcome.ERROR)
    assert not engine.requests


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_outlives_its_statement(
    gateway: LiveGateway, caller: Caller, engine: FakeEngine, stream: bool
) -> None:
    """It ends in time to be signed: a stream with an error event and `aborted`, a plain answer as an error; no receipt is late."""
    engine.behaviour.chunks, engine.behaviour.delay = (2000, 0.05) if stream else (1, 100)
    first = gateway.identity
    gateway.succeed()
    end(gateway, first, 5)
    answer = caller.chat("hello", stream=stream)
    assert answer.receipt.statement == first.statement_digest
    if stream:
        assert answer.outcome is Outcome.ABORTED
        assert answer.events[-1]["error"]["code"] == "statement_ended"
    else:
        assert (answer.status, answer.error) == (503, "statement_ended")
    until(lambda: engine.cancelled)


@pytest.mark.parametrize("channel", ["sealed+pinned", "sealed", "pinned"])
def test_a_client_whose_clock_is_late(gateway: LiveGateway, channel: Any) -> None:
    """It holds a verdict on a statement that has ended: it verifies anew before anything else leaves, and notices no more."""
    first = gateway.identity
    transport = attested_transport(gateway.policy_text, channel=channel)
    with httpx.Client(transport=transport, timeout=60) as client:
        statements = []
        for _ in range(2):
            answer = client.post(gateway.origin + CHAT, json=ASKED)
            statements.append(answer.extensions["attestation"].receipt.statement)
            if len(statements) == 1:
                gateway.succeed()
                end(gateway, first)
                until(lambda: open_connections(gateway) == 0)
    assert statements == [first.statement_digest, gateway.identity.statement_digest]


def test_without_a_successor(gateway: LiveGateway, caller: Caller, engine: FakeEngine) -> None:
    """Readiness ends before the statement does; after its end nothing is answered and nothing signed, under any route."""
    ready = {}
    for left in (OVERLAP / 2, OVERLAP / 5, 0):
        end(gateway, gateway.identity, left)
        answer = caller.http.get("/readyz")
        ready[left] = (answer.status_code, answer.json()["reason"])
    assert list(ready.values()) == [(200, None), (503, "identity_ending"), (503, "identity_expired")]
    for path in ("/.well-known/attestation", "/.well-known/attestation?nonce=" + "A" * 43):
        assert refusal(caller.http.get(path)) == (503, "identity_expired")
    unsigned = caller.http.post(CHAT, json=ASKED)
    assert refusal(unsigned) == (503, "identity_expired")
    assert "attested-receipt" not in unsigned.headers
    assert refusal(post(gateway, seal(gateway.identity)[0])) == (422, "sealed_key")
    assert not engine.requests


async def test_nothing_is_signed_after_the_end(gateway: LiveGateway) -> None:
    """Whoever comes to sign too late gets no receipt, whatever the reason was."""
    identity = gateway.identity
    ended: Statement = replace(identity.statement, not_after=int(datetime.now(UTC).timestamp()))

    async def send(_: object) -> None:
        raise AssertionError("something was sent")

    scope = {"method": "GET", "raw_path": b"/v1/models", "query_string": b"", "headers": []}
    exchange = Exchange(scope, send, replace(identity, statement=ended), ReceiptNumbers())
    with pytest.raises(RuntimeError, match="has ended"):
        await exchange.plain(200, b"{}", Outcome.COMPLETE)


def test_metrics(tmp_path: Path, engine: FakeEngine) -> None:
    """How many identities live, and how old the current one is, can be watched."""
    port = free_port()
    with live_gateway(tmp_path, engine=engine, metrics_port=port) as gateway:
        gateway.succeed()
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("enclave_identit"))
    assert float(numbers["enclave_identities"]) == 2
    assert -2 < float(numbers["enclave_identity_age_seconds"]) < 200
    assert float(numbers["enclave_identity_left_seconds"]) == pytest.approx(8 * 86400, abs=200)
