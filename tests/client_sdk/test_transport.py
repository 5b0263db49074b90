"""The transport against the real gateway: nothing leaves before the verdict, and every answer has its receipt."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from attestation.receipt import Outcome
from client_sdk import Attestation, AttestedClient, async_attested_transport, attested_transport, load_policy
from client_sdk.enclave import Connections
from client_sdk.tls import spki_digest
from client_sdk.transport import Library
from tests.client_sdk.conftest import Recorded, Relay, Switch, certificate
from tests.servers import MODEL, FakeEngine, LiveGateway, free_port, live_gateway

SECRET = "the secret prompt"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": SECRET}]}
STREAMED = {**ASKED, "stream": True}
CHAT = "/v1/chat/completions"
LIBRARIES = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])


def name_of(http: ModuleType) -> Library:
    return "httpx2" if http is httpx2 else "httpx"


def client_for(policy: str, http: Any = httpx, **options: Any) -> Any:
    return http.Client(transport=attested_transport(policy, name_of(http), **options))


def async_client_for(policy: str, http: Any = httpx, **options: Any) -> Any:
    return http.AsyncClient(transport=async_attested_transport(policy, name_of(http), **options))


def proven(response: Any) -> Attestation:
    found: Attestation = response.extensions["attestation"]
    return found


def ask_blocking(policy: str, origin: str, http: Any = httpx) -> Any:
    with client_for(policy, http) as client:
        return client.post(origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"})


def ask_async(policy: str, origin: str, http: Any = httpx) -> Any:
    async def work() -> Any:
        async with async_client_for(policy, http) as client:
            return await client.post(
                origin + CHAT, json=ASKED, headers={"Authorization": "Bearer secret-key"}
            )

    return asyncio.run(work())


Ask = Callable[..., Any]
WORLDS = pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


# ------------------------------------------------------------------------------------------------------- answers


@LIBRARIES
def test_plain(gateway: LiveGateway, http: Any) -> None:
    """An answer comes with its verdict and receipt; the next one needs no attestation."""
    with client_for(gateway.policy_text, http) as client:
        for counter in (1, 2):
            response = client.post(gateway.origin + CHAT, json=ASKED)
            assert SECRET in response.json()["choices"][0]["message"]["content"]
            receipt = proven(response).receipt
            assert receipt is not None
            assert (receipt.counter, receipt.outcome) == (counter, Outcome.COMPLETE)
            assert proven(response).verdict.simulated
            assert response.request.headers["Accept-Encoding"] == "identity"


@LIBRARIES
def test_streamed(gateway: LiveGateway, engine: FakeEngine, http: Any) -> None:
    """Events arrive as they are made; the receipt is there at the end, and not before."""
    engine.behaviour.split = True
    with client_for(gateway.policy_text, http) as client:
        with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as response:
            lines = response.iter_lines()
            assert next(lines).startswith('data: {"id"')
            assert proven(response).receipt is None
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert not [line for line in rest if "attested" in line]
        assert proven(response).receipt is not None


@LIBRARIES
async def test_async(gateway: LiveGateway, http: Any) -> None:
    """The same for `AsyncClient`, plain and streamed."""
    async with async_client_for(gateway.policy_text, http) as client:
        response = await client.post(gateway.origin + CHAT, json=ASKED)
        assert proven(response).receipt is not None
        async with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as streamed:
            lines = [line async for line in streamed.aiter_lines()]
        assert lines[-2:] == ["data: [DONE]", ""]
        assert proven(streamed).receipt is not None


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/nothing", 404), ("GET", CHAT, 405), ("HEAD", "/v1/models", 405)],
)
def test_errors_have_receipts(gateway: LiveGateway, method: str, path: str, status: int) -> None:
    """What the gateway refuses is signed like any answer."""
    with client_for(gateway.policy_text) as client:
        response = client.request(method, gateway.origin + path)
        assert response.status_code == status
        receipt = proven(response).receipt
        assert receipt is not None
        assert receipt.outcome is Outcome.ERROR


def test_an_error_before_the_whole_request_was_read(gateway: LiveGateway) -> None:
    """A request that is too large is refused with a receipt over the part that was read."""
    with client_for(gateway.policy_text) as client:
        body = b"x" * (gateway.settings.max_request_bytes + 1)
        response = client.post(gateway.origin + CHAT, content=body)
        assert response.status_code == 413
        receipt = proven(response).receipt
        assert receipt is not None
        assert receipt.request.length < len(body)


def test_a_request_in_pieces(gateway: LiveGateway) -> None:
    """A body that a generator makes is signed like any other."""
    with client_for(gateway.policy_text) as client:
        parts = (b'{"model":"', MODEL.encode(), b'","messages":[{"role":"user","content":"x"}]}')
        assert client.post(gateway.origin + CHAT, content=iter(parts)).status_code == 200


def test_the_gateways_own_routes_have_a_verdict_and_no_receipt(gateway: LiveGateway) -> None:
    """/healthz and its like carry nothing of a user's; of anything else an answer without a receipt is none."""
    with client_for(gateway.policy_text, channel="pinned") as client:
        response = client.get(gateway.origin + "/healthz")
        assert response.status_code == 200
        assert proven(response).receipt is None
        assert proven(response).verdict.statement.model.names == (MODEL,)
        with pytest.raises(VerificationError) as caught:
            client.get(gateway.origin + "/anything-else")
        assert caught.value.check is Check.RECEIPT_MISSING


def test_behind_a_seal_there_is_only_v1(gateway: LiveGateway) -> None:
    """The gateway's own routes go over the pinned connection as they are; anything else is asked for sealed."""
    with client_for(gateway.policy_text) as client:
        assert client.get(gateway.origin + "/healthz").status_code == 200
        other = client.get(gateway.origin + "/anything-else")
        assert (other.status_code, other.json()["error"]["code"]) == (404, "not_found")
        assert proven(other).receipt is not None
    with client_for(gateway.policy_text, channel="sealed") as client:
        with pytest.raises(VerificationError) as caught:
            client.get(gateway.origin + "/healthz")
        assert caught.value.check is Check.CHANNEL_UNPROTECTED


@LIBRARIES
def test_the_engines_death_is_told_and_signed(gateway: LiveGateway, engine: FakeEngine, http: Any) -> None:
    """An aborted stream hands over the error event and then raises; the receipt says aborted."""
    engine.behaviour.die_after = 2
    got = []
    with client_for(gateway.policy_text, http) as client:
        with client.stream("POST", gateway.origin + CHAT, json=STREAMED) as response:
            with pytest.raises(VerificationError) as caught:
                got += list(response.iter_lines())
            receipt = proven(response).receipt
        assert caught.value.check is Check.RECEIPT_OUTCOME
        assert receipt is not None
        assert receipt.outcome is Outcome.ABORTED


@LIBRARIES
async def test_a_broken_connection_is_a_truncated_stream(
    gateway: LiveGateway, engine: FakeEngine, http: Any
) -> None:
    """A connection that breaks in mid-stream is named for what it is, in both worlds; none of httpx's errors hides it."""
    engine.behaviour.hang_after = 2
    with Switch(gateway.settings.port) as switch:
        async with (
            async_client_for(gateway.policy_text, http) as client,
            client.stream("POST", switch.origin + CHAT, json=STREAMED) as response,
        ):
            lines = response.aiter_lines()
            await anext(lines)
            switch.cut()
            with pytest.raises(VerificationError) as caught:
                [line async for line in lines]
    assert caught.value.check is Check.STREAM_TRUNCATED
    assert not isinstance(caught.value, http.HTTPError)


# ------------------------------------------------------------------------------- nothing leaves before the verdict


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


# ------------------------------------------------------------------------------------ one session, many callers


def test_many_threads_attest_once(recorded: Recorded) -> None:
    """Thirty threads on a fresh client make one attestation."""
    with client_for(recorded.gateway.policy_text) as client, ThreadPoolExecutor(30) as threads:
        answers = list(
            threads.map(lambda _: client.post(recorded.gateway.origin + CHAT, json=ASKED), range(30))
        )
    assert {a.status_code for a in answers} == {200}
    assert recorded.recorder.attestations() == 1


async def test_many_tasks_attest_once(recorded: Recorded) -> None:
    """A hundred tasks too; after a restart of the enclave they verify its new keys once, and all get answers."""
    origin = recorded.gateway.origin
    async with async_client_for(recorded.gateway.policy_text) as client:
        answers = await asyncio.gather(*(client.post(origin + CHAT, json=ASKED) for _ in range(100)))
        assert recorded.recorder.attestations() == 1
        await asyncio.to_thread(recorded.gateway.restart)
        answers += await asyncio.gather(*(client.get(origin + "/v1/models") for _ in range(50)))
    assert {a.status_code for a in answers} == {200}
    assert recorded.recorder.attestations() == 2
    assert len({proven(a).verdict.statement_digest for a in answers}) == 2


async def test_a_failure_is_shared_by_those_who_wait(gateway: LiveGateway) -> None:
    """A hundred callers of an enclave that is not there fail together, not one after the other."""
    origin, started = f"https://127.0.0.1:{free_port()}", time.monotonic()
    async with async_client_for(gateway.policy_text) as client:
        failures = await asyncio.gather(
            *(client.get(origin + "/v1/models") for _ in range(100)), return_exceptions=True
        )
    assert {type(f) for f in failures} == {UnavailableError}
    assert len({id(f) for f in failures}) == 1
    assert time.monotonic() - started < 5


@LIBRARIES
def test_a_restarted_enclave_is_verified_anew(recorded: Recorded, http: Any) -> None:
    """New keys behind the same address: verified before the request is sent, which the caller does not notice."""
    origin = recorded.gateway.origin
    with client_for(recorded.gateway.policy_text, http) as client:
        first = proven(client.get(origin + "/v1/models")).verdict
        recorded.gateway.restart()
        second = proven(client.get(origin + "/v1/models")).verdict
    assert recorded.recorder.attestations() == 2
    assert first.statement.keys.tls_spki_sha256 != second.statement.keys.tls_spki_sha256


def test_a_stream_from_the_old_keys_ends_well(tmp_path: Path, engine: FakeEngine) -> None:
    """When keys change in mid-stream, that stream ends with its own receipt; requests after it go to the new keys only."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    shared: dict[str, Any] = {"simulator_dir": tmp_path / "simulator"}
    with (
        live_gateway(tmp_path / "a", engine=engine, **shared) as old,
        live_gateway(tmp_path / "b", engine=engine, **shared) as new,
        Switch(old.settings.port) as switch,
    ):
        policy = both(old.policy_text, new.policy_text)
        with client_for(policy) as client:
            engine.behaviour.delay = 0.1
            with client.stream("POST", switch.origin + CHAT, json=STREAMED) as response:
                lines = response.iter_lines()
                next(lines)
                switch.port = new.settings.port
                engine.behaviour.delay = 0
                moved = client.post(switch.origin + CHAT, json=ASKED)
                assert list(lines)[-2] == "data: [DONE]"
            assert proven(response).receipt is not None
            again = client.post(switch.origin + CHAT, json=ASKED)
        assert proven(response).verdict.statement == old.identity.statement
        assert proven(moved).verdict == proven(again).verdict
        assert proven(moved).verdict.statement == new.identity.statement
        # evidence and stream; a handshake with the wrong key, evidence again, and one connection for two requests
        assert switch.connections == 5


def both(one: str, other: str) -> str:
    """A policy that accepts the configurations of both gateways."""
    digests = next(line for line in other.splitlines() if line.startswith("config_digests"))
    inside = digests.partition("[")[2].partition("]")[0]
    return one.replace("config_digests = [", f"config_digests = [{inside}, ")


def test_connections_are_closed_when_their_last_answer_was_read() -> None:
    """Retired connections take no request, and are closed by whoever leaves last."""
    idle, busy = Connections(b"", None), Connections(b"", None)
    assert idle.enter()
    assert not idle.leave()
    assert idle.retire()
    assert not idle.enter()
    assert busy.enter()
    assert busy.enter()
    assert not busy.retire()
    assert not busy.leave()
    assert busy.leave()


# -------------------------------------------------------------------------------------------------------- policies


def test_a_policy_is_a_file_text_or_itself(gateway: LiveGateway, tmp_path: Any) -> None:
    """Whatever form a policy comes in, it says the same."""
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    policy = load_policy(gateway.policy_text)
    assert load_policy(file) == load_policy(str(file)) == load_policy(policy) == policy


@pytest.mark.parametrize("policy", ["", "no-such-file.toml", "no-such-file\0", "[nonsense]", "a = 1", "\n="])
def test_a_policy_is_read_when_a_client_is_made(policy: str) -> None:
    """And not when it is too late: what is no policy is malformed, a file that cannot be read leaves the question open."""
    is_text = any(c in policy for c in "\n[=")
    with pytest.raises(MalformedError if is_text else UnavailableError) as caught:
        attested_transport(policy)
    assert caught.value.check is Check.POLICY_FORMAT


def test_a_policy_file_that_is_no_text(tmp_path: Any) -> None:
    """Bytes that are not UTF-8 are no policy."""
    file = tmp_path / "policy.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(MalformedError):
        load_policy(file)


# ----------------------------------------------------------------------------------------------------- the package


def test_importing_is_quick_and_needs_no_openai() -> None:
    """`import client_sdk` loads neither openai nor a web framework, in well under a third of a second."""
    program = (
        "import sys, time; t = time.perf_counter(); import client_sdk; took = time.perf_counter() - t\n"
        "assert took < 0.35, took\n"
        "client_sdk.attested_transport\n"
        "assert not {'openai', 'fastapi', 'httpx2', 'enclave_server'} & set(sys.modules), sys.modules\n"
        "assert set(dir(client_sdk)) == set(client_sdk.__all__)\n"
        "[getattr(client_sdk, name) for name in client_sdk.__all__]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    import client_sdk

    assert client_sdk.__all__ == sorted(client_sdk.__all__)
    with pytest.raises(AttributeError):
        client_sdk.Nonsense  # noqa: B018


def test_errors_are_nobody_elses() -> None:
    """No error of ours is one of httpx's, httpx2's or openai's, which clients retry and hide."""
    import openai

    for kind in (AttestationError, MalformedError, VerificationError, PolicyError, UnavailableError):
        assert not issubclass(kind, (httpx.HTTPError, httpx2.HTTPError, openai.OpenAIError, OSError))
