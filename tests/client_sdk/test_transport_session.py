"""One session under many callers: attested once, renewed after a restart, and closed when its last answer was read."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from attestation.errors import UnavailableError
from client_sdk import Trust, async_attested_transport
from client_sdk.enclave import Connections
from tests.client_sdk.conftest import Recorded, Switch
from tests.client_sdk.transported import (
    ASKED,
    CHAT,
    LIBRARIES,
    STREAMED,
    async_client_for,
    client_for,
    proven,
)
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway


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
    origin, now = f"https://127.0.0.1:{free_port()}", datetime.now(UTC)
    trust = Trust(
        gateway.policy_text, clock=lambda: now
    )  # the failure answers for a second, which does not pass
    async with httpx.AsyncClient(transport=async_attested_transport(trust)) as client:
        failures = await asyncio.gather(
            *(client.get(origin + "/v1/models") for _ in range(100)), return_exceptions=True
        )
    assert {type(f) for f in failures} == {UnavailableError}
    assert len({id(f) for f in failures}) == 1
    assert trust.session(origin).attempts == 1


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
