"""Trust that is kept up: renewed before it ends without a pause, shared by many clients, survived by forks."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError, UnavailableError, VerificationError
from client_sdk import AsyncOpenAI, OpenAI, Trust, async_attested_transport, attested_transport
from client_sdk.kept import EVIDENCE_PATH
from client_sdk.session import Refused, Unverified, Verified
from enclave_server.app import App
from tests.client_sdk.conftest import Recorded, Switch
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you"}]}
CHAT = "/v1/chat/completions"
MODELS = "/v1/models"
AGE = timedelta(
    seconds=200
)  # so that receipts, which may be 300 s off, do not mind a clock that is put forward


class Clock:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


def renewals() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "attestation-renewal"]


def settled() -> bool:
    return not renewals()


def verified(trust: Trust, url: str) -> Verified:
    state = trust.state(url)
    assert isinstance(state, Verified)
    return state


# --------------------------------------------------------------------------------------------------------- renewal


def test_a_verdict_is_renewed_while_requests_go_on(recorded: Recorded) -> None:
    """Near its end a request starts a renewal and does not wait for it, even when the evidence takes its time."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    with httpx.Client(transport=attested_transport(trust)) as client:
        client.get(origin + MODELS)
        before = verified(trust, origin)
        clock.ahead = AGE * 0.81
        recorded.recorder.delay = 1.0
        for _ in range(3):
            started = time.monotonic()
            assert client.get(origin + MODELS).status_code == 200
            assert time.monotonic() - started < 0.9
        assert len(renewals()) == 1, "one at a time, whoever asks"
        until(settled, 10)
        assert recorded.recorder.attestations() == 2
        after = verified(trust, origin)
        assert after.verdict is not before.verdict
        assert after.until > before.until
        clock.ahead = AGE * 1.2  # the first verdict has ended
        client.get(origin + MODELS)
    until(settled, 10)
    assert recorded.recorder.attestations() == 2


async def test_an_async_client_is_not_held_up_either(recorded: Recorded) -> None:
    """The loop goes on while the renewal runs, and nothing is left when the client is closed."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    async with httpx2.AsyncClient(transport=async_attested_transport(trust, "httpx2")) as client:
        await client.get(origin + MODELS)
        clock.ahead = AGE * 0.81
        recorded.recorder.delay = 1.0
        started = time.monotonic()
        answers = await asyncio.gather(*(client.get(origin + MODELS) for _ in range(20)))
        assert time.monotonic() - started < 0.9
        assert {a.status_code for a in answers} == {200}
    await asyncio.to_thread(until, settled, 10)
    assert recorded.recorder.attestations() == 2


def test_an_idle_client_asks_for_nothing(recorded: Recorded) -> None:
    """No thread waits for the moment: without requests there is no renewal, and the next request attests."""
    clock, origin = Clock(), recorded.gateway.origin
    with httpx.Client(
        transport=attested_transport(Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE))
    ) as client:
        client.get(origin + MODELS)
        assert settled()
        clock.ahead = AGE * 1.2
        client.get(origin + MODELS)
    assert recorded.recorder.attestations() == 2


def test_an_enclave_that_cannot_be_reached_for_renewal(gateway: LiveGateway) -> None:
    """Requests go on under the old verdict to its deadline; then they end with the reason, and nothing was sent."""
    clock = Clock()
    trust = Trust(gateway.policy_text, clock=clock, max_age=AGE)
    with Switch(gateway.settings.port) as switch, httpx.Client(transport=attested_transport(trust)) as client:
        client.get(switch.origin + MODELS)
        clock.ahead = AGE * 0.81
        switch.refuse = True
        assert client.get(switch.origin + MODELS).status_code == 200
        until(settled, 10)
        state = verified(trust, switch.origin)
        assert isinstance(state.failure, UnavailableError)
        assert client.get(switch.origin + MODELS).status_code == 200, "over the connection that is there"
        clock.ahead = AGE
        with pytest.raises(UnavailableError) as caught:
            client.get(switch.origin + MODELS)
        assert caught.value.check is Check.EVIDENCE_FETCH
        assert isinstance(trust.state(switch.origin), Refused)
        switch.refuse = False
        clock.ahead = AGE + timedelta(seconds=2)
        assert client.get(switch.origin + MODELS).status_code == 200, "it recovers"


def test_a_renewal_that_is_refused(recorded: Recorded) -> None:
    """What a renewal refuses by the policy is the error that requests end with from the deadline on."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    with httpx.Client(transport=attested_transport(trust)) as client:
        client.get(origin + MODELS)
        recorded.recorder.corrupt = True
        clock.ahead = AGE * 0.81
        assert client.get(origin + MODELS).status_code == 200
        until(settled, 10)
        failure = verified(trust, origin).failure
        assert failure is not None
        clock.ahead = AGE
        with pytest.raises(type(failure)) as caught:
            client.get(origin + MODELS)
        assert caught.value.check is failure.check is Check.EVIDENCE_FORMAT


def test_a_renewal_finds_new_keys(recorded: Recorded) -> None:
    """A restarted enclave that a renewal meets first: the next request goes to the new keys, without a refused handshake."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    with httpx.Client(transport=attested_transport(trust)) as client:
        old = client.get(origin + MODELS).extensions["attestation"].verdict
        recorded.gateway.restart()
        clock.ahead = AGE * 0.81
        client.get(origin + MODELS)  # itself meets the new keys, or waits for the renewal that has
        until(settled, 10)
        new = client.get(origin + MODELS).extensions["attestation"].verdict
    assert old.statement_digest != new.statement_digest
    assert recorded.recorder.attestations() in {2, 3}


# ---------------------------------------------------------------------------------------- at the moment of sending


ONE: dict[str, Any] = {"limits": httpx.Limits(max_connections=1)}
CHANNELS = pytest.mark.parametrize("channel", ["sealed+pinned", "pinned"])


@CHANNELS
def test_a_request_that_waits_for_a_connection_is_judged_when_it_has_one(
    recorded: Recorded, engine: FakeEngine, channel: Any
) -> None:
    """The only connection is busy until the verdict has ended: evidence first, then the request, on the same connection."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    transport = attested_transport(trust, channel=channel, **ONE)
    with httpx.Client(transport=transport, timeout=20) as client, ThreadPoolExecutor(2) as threads:
        client.get(origin + MODELS)
        engine.behaviour.delay = 1.0
        busy = threads.submit(client.post, origin + CHAT, json=ASKED)
        until(lambda: bool(engine.requests) and engine.requests[-1].method == "POST", 5)
        waiting = threads.submit(client.get, origin + MODELS)
        time.sleep(0.2)
        recorded.recorder.requests.clear()
        clock.ahead = AGE * 1.1
        assert busy.result().status_code == waiting.result().status_code == 200
    assert recorded.recorder.paths == [EVIDENCE_PATH, "/sealed" if channel == "sealed+pinned" else MODELS]


@CHANNELS
async def test_nothing_is_sent_when_it_cannot_be_renewed(
    recorded: Recorded, engine: FakeEngine, channel: Any
) -> None:
    """The same for async clients, and with an enclave that gives no evidence then: the reason, and nothing else on the wire."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    transport = async_attested_transport(trust, channel=channel, **ONE)
    async with httpx.AsyncClient(transport=transport, timeout=20) as client:
        await client.get(origin + MODELS)
        engine.behaviour.delay = 1.0
        busy = asyncio.create_task(client.post(origin + CHAT, json=ASKED))
        await asyncio.sleep(0.4)
        waiting = asyncio.create_task(client.post(origin + CHAT, json=ASKED))
        await asyncio.sleep(0.2)
        recorded.recorder.requests.clear()
        recorded.recorder.corrupt = True
        clock.ahead = AGE * 1.1
        assert (await busy).status_code == 200
        with pytest.raises(MalformedError):
            await waiting
    assert recorded.recorder.paths == [EVIDENCE_PATH]


def test_a_verdict_that_ends_twice_is_named(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no verdict lasts until a connection is there, the request ends with that reason and was never sent."""
    trust = Trust(recorded.gateway.policy_text)
    origin = recorded.gateway.origin
    with httpx.Client(transport=attested_transport(trust)) as client:
        client.get(origin + MODELS)
        recorded.recorder.requests.clear()
        session = trust.session(origin)
        steps = [session.current(), None, None]  # there when asked for, gone when the connection is
        monkeypatch.setattr(session, "current", lambda: steps.pop(0) if steps else None)
        with pytest.raises(VerificationError) as caught:
            client.post(origin + CHAT, json=ASKED)
    assert caught.value.check is Check.SESSION_ENDED
    assert recorded.recorder.paths == [EVIDENCE_PATH]


def test_a_connection_whose_statement_has_ended(tmp_path: Path, engine: FakeEngine) -> None:
    """421 over a pinned connection says that nothing was done: verified anew, and asked again, once."""
    answers = [421, 200]

    def misdirect(app: App) -> App:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or not scope["path"].startswith("/v1") or answers.pop(0) == 200:
                await app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        return answer

    with live_gateway(tmp_path, engine=engine, wrap=misdirect) as gateway:
        trust = Trust(gateway.policy_text)
        with httpx.Client(transport=attested_transport(trust, channel="pinned")) as client:
            assert client.get(gateway.origin + MODELS).status_code == 200
            assert trust.session(gateway.origin).attempts == 2
            answers += [421, 421]
            with pytest.raises(VerificationError) as caught:
                client.get(gateway.origin + MODELS)
    assert caught.value.check is Check.CHANNEL_TLS_KEY


# --------------------------------------------------------------------------------------------------------- sharing


async def test_blocking_and_async_clients_share_one_attestation(recorded: Recorded) -> None:
    """Both libraries, both worlds, OpenAI's classes and threads: one trust, one attestation for all."""
    gateway = recorded.gateway
    trust = Trust(gateway.policy_text)
    key = "none"

    def blocking(_: int) -> str:
        with OpenAI(base_url=gateway.url, policy=trust, api_key=key) as client:
            return client.models.list().data[0].id

    async def with_async() -> str:
        async with AsyncOpenAI(base_url=gateway.url, policy=trust, api_key=key) as client:
            return (await client.models.list()).data[0].id

    with ThreadPoolExecutor(8) as threads:
        loop = asyncio.get_running_loop()
        work = [loop.run_in_executor(threads, blocking, n) for n in range(8)]
        found = await asyncio.gather(*work, *(with_async() for _ in range(8)))
    with httpx2.Client(transport=attested_transport(trust, "httpx2")) as client:
        client.get(gateway.origin + MODELS)
    assert set(found) == {MODEL}
    assert recorded.recorder.attestations() == 1


def test_a_trust_verifies_by_itself(recorded: Recorded) -> None:
    """`verify` attests at once, so that a program fails at its start and not at its first question."""
    gateway = recorded.gateway
    trust = Trust(gateway.policy_text)
    assert trust.state(gateway.url) == Unverified()
    verdict = trust.verify(gateway.url)
    assert trust.verify(gateway.origin) is verdict
    assert verified(trust, gateway.origin).verdict is verdict
    with httpx.Client(transport=attested_transport(trust)) as client:
        client.get(gateway.origin + MODELS)
    assert recorded.recorder.attestations() == 1
    with pytest.raises(VerificationError):
        Trust("[tdx]\n").verify(gateway.url)
    with pytest.raises(VerificationError) as caught:
        trust.verify("http://localhost")
    assert caught.value.check is Check.CHANNEL_UNPROTECTED


def test_what_belongs_to_a_trust_is_not_given_twice(gateway: LiveGateway) -> None:
    """A client that shares one cannot set how long verdicts hold."""
    with pytest.raises(TypeError):
        attested_transport(Trust(gateway.policy_text), max_age=timedelta(minutes=1))
    with pytest.raises(TypeError):
        OpenAI(base_url=gateway.url, policy=Trust(gateway.policy_text), max_age=timedelta(1), api_key="k")


def test_one_event_loop_after_another(recorded: Recorded) -> None:
    """A trust outlives the loops that used it."""
    trust = Trust(recorded.gateway.policy_text)

    async def ask() -> int:
        async with httpx.AsyncClient(transport=async_attested_transport(trust)) as client:
            return (await client.get(recorded.gateway.origin + MODELS)).status_code

    assert [asyncio.run(ask()) for _ in range(3)] == [200] * 3
    assert recorded.recorder.attestations() == 1


async def test_a_caller_that_gives_up_takes_nobody_with_it(recorded: Recorded) -> None:
    """The first of many waiters is cancelled in mid-attestation: it ends at once, and the others get their answers."""
    recorded.recorder.delay = 0.5
    origin = recorded.gateway.origin
    async with httpx.AsyncClient(
        transport=async_attested_transport(recorded.gateway.policy_text), timeout=20
    ) as client:
        first, *others = [asyncio.create_task(client.get(origin + MODELS)) for _ in range(5)]
        await asyncio.sleep(0.2)
        started = time.monotonic()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert time.monotonic() - started < 0.2
        assert {(await other).status_code for other in others} == {200}
    assert recorded.recorder.attestations() == 1


# ----------------------------------------------------------------------------------------------------------- forks


def test_a_fork_uses_neither_the_connections_nor_the_locks_of_its_parent(
    recorded: Recorded, engine: FakeEngine
) -> None:
    """A child that was forked while an attestation ran asks over its own connections, under the verdict it inherited."""
    origin = recorded.gateway.origin
    clock = Clock()
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    client = httpx.Client(transport=attested_transport(trust))
    before = client.get(origin + MODELS).extensions["attestation"].receipt.counter
    clock.ahead = AGE * 0.81
    recorded.recorder.delay = 1.0
    client.get(origin + MODELS)
    assert renewals(), "its thread, which holds the lock, is not in the child"
    child = in_child(lambda: client.get(origin + MODELS).extensions["attestation"].receipt.counter)
    assert child > before
    assert client.get(origin + MODELS).status_code == 200, "the parent's connection is as it was"
    client.close()
    until(settled, 10)


def in_child(work: Callable[[], int]) -> int:
    """What `work` returns in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(pid, 0)
    return int(said)


# ----------------------------------------------------------------------------------------------------------- clocks


@pytest.mark.parametrize("off", [timedelta(days=-400), timedelta(days=30)])
def test_a_clock_that_is_off_is_named(recorded: Recorded, off: timedelta) -> None:
    """Against the real gateway: the refusal names the clock and both times, and nothing but evidence was asked for."""
    clock = Clock()
    clock.ahead = off
    with (
        httpx.Client(
            transport=attested_transport(Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE))
        ) as client,
        pytest.raises(VerificationError) as caught,
    ):
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
    assert caught.value.check is Check.SESSION_CLOCK
    assert "Set this machine's clock" in str(caught.value)
    assert recorded.recorder.paths == ["/.well-known/attestation"]


def test_a_clock_that_is_off_by_less_than_collateral_notices(recorded: Recorded) -> None:
    """Ten minutes are nothing to certificates; the first receipt, which is signed, names the clock."""
    clock = Clock()
    clock.ahead = timedelta(minutes=10)
    with (
        httpx.Client(
            transport=attested_transport(Trust(recorded.gateway.policy_text, clock=clock), channel="pinned")
        ) as client,
        pytest.raises(VerificationError) as caught,
    ):
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
    assert caught.value.check is Check.RECEIPT_TIME
    assert "Set this machine's clock" in str(caught.value)


def test_a_refused_machine_is_not_blamed_on_the_clock(recorded: Recorded) -> None:
    """Where the policy refuses at any time, that is what is told, whatever the clocks say."""
    clock = Clock()
    clock.ahead = timedelta(minutes=30)
    policy = recorded.gateway.policy_text.replace("required = false", "required = true")
    with (
        httpx.Client(transport=attested_transport(Trust(policy, clock=clock))) as client,
        pytest.raises(PolicyError),
    ):
        client.post(recorded.gateway.origin + CHAT, json=ASKED)
