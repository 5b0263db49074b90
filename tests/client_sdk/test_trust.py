"""Trust that is kept up: renewed before it ends without a pause, shared by many clients, survived by forks."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, PolicyError, UnavailableError, VerificationError
from client_sdk import Trust, async_attested_transport, attested_transport
from client_sdk.kept import EVIDENCE_PATH
from client_sdk.session import Refused
from enclave_server.app import App
from tests.client_sdk.conftest import Recorded, Switch
from tests.client_sdk.transported import Clock
from tests.client_sdk.trusting import AGE, ASKED, CHAT, MODELS, renewals, settled, verified
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, live_gateway

# --------------------------------------------------------------------------------------------------------- renewal


def test_a_verdict_is_renewed_while_requests_go_on(recorded: Recorded) -> None:
    """Near its end a request starts a renewal and does not wait for it, even when the evidence takes its time."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    with httpx.Client(transport=attested_transport(trust)) as client:
        client.get(origin + MODELS)
        before = verified(trust, origin)
        clock.ahead = AGE * 0.81
        recorded.recorder.delay = 60
        for _ in range(3):
            assert client.get(origin + MODELS).status_code == 200
        assert len(renewals()) == 1, "one at a time, whoever asks, and nobody has waited for it"
        recorded.recorder.delay = 0
        until(settled)
        assert recorded.recorder.attestations() == 2
        after = verified(trust, origin)
        assert after.verdict is not before.verdict
        assert after.until > before.until
        clock.ahead = AGE * 1.2  # the first verdict has ended
        client.get(origin + MODELS)
    until(settled)
    assert recorded.recorder.attestations() == 2


async def test_an_async_client_is_not_held_up_either(recorded: Recorded) -> None:
    """The loop goes on while the renewal runs, and nothing is left when the client is closed."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    async with httpx2.AsyncClient(transport=async_attested_transport(trust, "httpx2")) as client:
        await client.get(origin + MODELS)
        clock.ahead = AGE * 0.81
        recorded.recorder.delay = 60
        answers = await asyncio.gather(*(client.get(origin + MODELS) for _ in range(20)))
        assert renewals()
        recorded.recorder.delay = 0
        assert {a.status_code for a in answers} == {200}
    await asyncio.to_thread(until, settled)
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
        until(settled)
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
        until(settled)
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
        until(settled)
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
    with httpx.Client(transport=transport, timeout=60) as client, ThreadPoolExecutor(2) as threads:
        client.get(origin + MODELS)
        engine.behaviour.delay = 60
        busy = threads.submit(client.post, origin + CHAT, json=ASKED)
        until(lambda: bool(engine.requests) and engine.requests[-1].method == "POST")
        waiting = threads.submit(client.get, origin + MODELS)
        time.sleep(0.2)
        recorded.recorder.requests.clear()
        clock.ahead = AGE * 1.1
        engine.behaviour.delay = 0
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
    async with httpx.AsyncClient(transport=transport, timeout=60) as client:
        await client.get(origin + MODELS)
        engine.behaviour.delay = 60
        busy = asyncio.create_task(client.post(origin + CHAT, json=ASKED))
        await asyncio.to_thread(until, lambda: engine.requests and engine.requests[-1].method == "POST")
        waiting = asyncio.create_task(client.post(origin + CHAT, json=ASKED))
        await asyncio.sleep(0.2)
        recorded.recorder.requests.clear()
        recorded.recorder.corrupt = True
        clock.ahead = AGE * 1.1
        engine.behaviour.delay = 0
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
