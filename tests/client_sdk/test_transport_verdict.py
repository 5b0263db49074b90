"""The transport before there is a verdict: nothing leaves, whatever is at the other end."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.checks import Check
from attestation.errors import MalformedError, UnavailableError, VerificationError
from client_sdk import AttestedClient, attested_transport
from client_sdk.tls import spki_digest
from tests.client_sdk.conftest import Recorded, Relay, certificate
from tests.client_sdk.transported import (
    ASKED,
    CHAT,
    LIBRARIES,
    SECRET,
    WORLDS,
    Ask,
    Clock,
    ask_blocking,
    client_for,
    proven,
)
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway


@pytest.mark.parametrize(
    ("old", "new"),
    [("", "00"), ("2a8648ce3d030107", "2a8648ce3d030109"), ("a003020102", "a003020107")],
    ids=["cut", "unknown curve", "unknown version"],
)
def test_a_certificate_that_cannot_be_read(tmp_path: Path, old: str, new: str) -> None:
    """Whatever the peer shows in its place, the refusal is the one for a key that is not the attested one."""
    der = x509.load_pem_x509_certificate(certificate(tmp_path).read_bytes()).public_bytes(Encoding.DER)
    shown = der.replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    assert shown != der
    with pytest.raises(VerificationError) as caught:
        spki_digest(shown)
    assert caught.value.check is Check.CHANNEL_TLS_KEY


@WORLDS
@LIBRARIES
def test_no_byte_of_a_prompt_reaches_another_tls_key(
    relay: Relay, gateway: LiveGateway, engine: FakeEngine, ask: Ask, http: Any
) -> None:
    """Somebody who relays a real enclave's evidence is refused in the handshake that the prompt would follow."""
    with pytest.raises(VerificationError) as caught:
        ask(gateway.policy_text, relay.origin, http)
    assert caught.value.check is Check.CHANNEL_TLS_KEY
    assert relay.connections == 4, "evidence and handshake, and both once more"
    assert relay.heard.count(b"GET /.well-known/attestation") == relay.heard.count(b"HTTP/1.1") == 2
    assert SECRET.encode() not in relay.heard
    assert b"secret-key" not in relay.heard
    assert not engine.requests


def test_a_stale_verdict_sends_nothing(recorded: Recorded) -> None:
    """Past its deadline a verdict is renewed before the request leaves; where that fails, nothing does."""
    clock = Clock()
    policy = recorded.gateway.policy_text
    with client_for(policy, clock=clock, max_age=timedelta(seconds=60)) as client:
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
        clock.ahead = timedelta(seconds=30)  # before it is due for renewal
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
        assert recorded.recorder.attestations() == 1
        clock.ahead = timedelta(seconds=61)
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
        assert recorded.recorder.attestations() == 2
        recorded.recorder.requests.clear()
        clock.ahead = timedelta(days=8)  # the statement has ended, unless the clock is wrong
        with pytest.raises(VerificationError) as caught:
            client.post(recorded.gateway.origin + CHAT, json=ASKED)
        assert caught.value.check is Check.SESSION_CLOCK
        assert "[statement.validity]" in caught.value.detail
        assert recorded.recorder.paths == ["/.well-known/attestation"]


@LIBRARIES
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ws://127.0.0.1:1", "http://localhost/v1"])
def test_plain_http_is_refused(gateway: LiveGateway, http: Any, url: str) -> None:
    """There is no way to an enclave without TLS, and no switch for one."""
    with client_for(gateway.policy_text, http) as client, pytest.raises(VerificationError) as caught:
        client.post(url + CHAT, json=ASKED)
    assert caught.value.check is Check.CHANNEL_UNPROTECTED


def test_tls_itself_cannot_be_loosened(gateway: LiveGateway) -> None:
    """Options that say whom to trust are not taken."""
    loosened: dict[str, Any]
    for loosened in ({"verify": False}, {"cert": "file"}, {"trust_env": True}):
        with pytest.raises(TypeError):
            attested_transport(gateway.policy_text, **loosened)


@WORLDS
@LIBRARIES
def test_nobody_there(gateway: LiveGateway, http: Any, ask: Ask) -> None:
    """An enclave that cannot be reached is unavailable: no verdict, no request, and an error that may be retried."""
    with pytest.raises(UnavailableError) as caught:
        ask(gateway.policy_text, f"https://127.0.0.1:{free_port()}", http)
    assert caught.value.check is Check.EVIDENCE_FETCH


@LIBRARIES
def test_a_proxy_in_the_environment_is_no_way_around(
    gateway: LiveGateway, http: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTPS_PROXY and its like make ordinary clients use a transport of their own; an attested one has no other."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with client_for(gateway.policy_text, http) as client:
        assert not client._mounts
        assert proven(client.post(gateway.origin + CHAT, json=ASKED)).receipt is not None
    with AttestedClient(gateway.policy_text) as attested:
        assert not attested._mounts


def _answer_without_tls(server: socket.socket) -> None:
    peer, _ = server.accept()
    with peer:
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@WORLDS
@LIBRARIES
def test_no_tls_there(gateway: LiveGateway, http: Any, ask: Ask) -> None:
    """Something that does not speak TLS is unavailable too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_answer_without_tls, args=[server])
        thread.start()
        with pytest.raises(UnavailableError):
            ask(gateway.policy_text, f"https://127.0.0.1:{server.getsockname()[1]}", http)
        thread.join()


def test_too_many_requests_for_evidence(tmp_path: Path, engine: FakeEngine) -> None:
    """A gateway that makes no fresh evidence now says when it will; the error names it."""
    with live_gateway(tmp_path, engine=engine, evidence_per_second=0.01, evidence_burst=1) as gateway:
        ask_blocking(gateway.policy_text, gateway.origin)
        with pytest.raises(UnavailableError, match="status 429, to be asked again in"):
            ask_blocking(gateway.policy_text, gateway.origin)


def test_evidence_without_end(gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document is read up to its limit, and no further."""
    monkeypatch.setattr("client_sdk.kept.MAX_DOCUMENT_BYTES", 1000)
    with pytest.raises(MalformedError) as caught:
        ask_blocking(gateway.policy_text, gateway.origin)
    assert caught.value.check is Check.EVIDENCE_FORMAT
