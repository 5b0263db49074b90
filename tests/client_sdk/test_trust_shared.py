"""One trust for many: blocking and async clients, one event loop after another, callers that give up, forks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import httpx2
import pytest

from attestation.checks import Check
from attestation.errors import VerificationError
from client_sdk import AsyncOpenAI, OpenAI, Trust, async_attested_transport, attested_transport
from client_sdk.session import Unverified
from tests.client_sdk.conftest import Recorded
from tests.client_sdk.trusting import MODELS, verified
from tests.processes import until
from tests.servers import MODEL, LiveGateway

ROOT = Path(__file__).resolve().parent.parent.parent


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
    recorded.recorder.delay = 60
    origin = recorded.gateway.origin
    async with httpx.AsyncClient(
        transport=async_attested_transport(recorded.gateway.policy_text), timeout=60
    ) as client:
        first, *others = [asyncio.create_task(client.get(origin + MODELS)) for _ in range(5)]
        await asyncio.to_thread(until, recorded.recorder.attestations)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        recorded.recorder.delay = 0
        assert {(await other).status_code for other in others} == {200}
    assert recorded.recorder.attestations() == 1


# ----------------------------------------------------------------------------------------------------------- forks


def test_a_fork_uses_neither_the_connections_nor_the_locks_of_its_parent(
    tmp_path: Path, recorded: Recorded
) -> None:
    """A child that was forked while an attestation ran asks over its own connections, under the verdict it inherited."""
    policy = tmp_path / "policy.toml"
    policy.write_text(recorded.gateway.policy_text)
    command = [sys.executable, "-m", "tests.client_sdk.forking", recorded.gateway.origin, str(policy)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == "verified\n"
        recorded.recorder.delay = 60
        program.stdin.write("\n")
        program.stdin.flush()
        first, second, childs, last = json.loads(program.stdout.readline())
        recorded.recorder.delay = 0
    assert program.returncode == 0
    assert first < second < childs < last, "the parent's connection is as it was"
