"""Rollovers of a real gateway with two workers, one after the other within seconds, while clients work."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from typing import Any

import httpx
import pytest

from attestation import sealed
from attestation.sealed_head import RequestHead
from client_sdk import async_attested_transport, attested_transport
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.test_prefork import children, workers
from tests.processes import until
from tests.served import Served, everything_written, served

pytestmark = pytest.mark.slow
CHANNELS = ("sealed+pinned", "pinned", "sealed")
CHAT = "/v1/chat/completions"
SECONDS, OVERLAP = 40.0, 10.0


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return {
        **fake_settings(tmp_path, delay=0.01, chunks=10),
        "drain_seconds": 3,
        "workers": 2,
        "identity_hours": 20 / 3600,
        "identity_overlap_minutes": 10 / 60,
        "evidence_per_second": 1000,
        "evidence_burst": 10000,
    }


@pytest.fixture
def gateway(tmp_path: Path, values: dict[str, Any]) -> Iterator[Served]:
    with served(tmp_path / "gateway", **values) as running:
        yield running


def count(gateway: Served, event: str) -> int:
    return gateway.log.count(f'"event": "{event}"')


def asked(stream: bool) -> dict[str, Any]:
    return {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}], "stream": stream}


def seen_by(response: httpx.Response, stream: bool) -> bytes:
    """The statement under which a whole answer was verified."""
    assert response.status_code == 200, response.text
    assert stream is response.text.endswith("data: [DONE]\n\n")
    attestation = response.extensions["attestation"]
    statement: bytes = attestation.verdict.statement_digest
    assert attestation.receipt.statement == statement
    return statement


def blocking(gateway: Served, policy: str, channel: Any, stream: bool) -> list[bytes]:
    """Ask until the time is over; every request has to be answered."""
    seen, end = [], time.monotonic() + SECONDS
    with httpx.Client(transport=attested_transport(policy, channel=channel), timeout=30) as client:
        while time.monotonic() < end:
            seen.append(seen_by(client.post(gateway.origin + CHAT, json=asked(stream)), stream))
            time.sleep(0.05)
    return seen


def asynchronous(gateway: Served, policy: str, channel: Any, stream: bool) -> list[bytes]:
    """The same, from two tasks that share a client."""

    async def ask(client: httpx.AsyncClient, end: float) -> list[bytes]:
        seen = []
        while time.monotonic() < end:
            seen.append(seen_by(await client.post(gateway.origin + CHAT, json=asked(stream)), stream))
            await asyncio.sleep(0.05)
        return seen

    async def both() -> list[bytes]:
        end = time.monotonic() + SECONDS
        transport = async_attested_transport(policy, channel=channel)
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            one, other = await asyncio.gather(ask(client, end), ask(client, end))
            return one + other

    return asyncio.run(both())


def test_no_request_fails(gateway: Served, tmp_path: Path) -> None:
    """Sealed and pinned, plain and streamed, blocking and async: every request of every client is answered and verified,
    over several rollovers; no key is in anything that was written, and no worker had to be replaced."""
    policy = gateway.policy()
    works: list[Callable[..., list[bytes]]] = [blocking, asynchronous]
    with ThreadPoolExecutor(12) as pool:
        futures = [
            pool.submit(work, gateway, policy, channel, stream)
            for work in works
            for channel in CHANNELS
            for stream in (False, True)
        ]
        seen = [future.result() for future in futures]
    assert count(gateway, "identity takes over") >= 3
    assert count(gateway, "identity ended") >= 2
    for answers in seen:
        assert len(answers) > 20
        assert len(set(answers)) >= 3, "statements"
    assert '"level": "error"' not in gateway.log
    rmtree(tmp_path / "gateway" / "simulator")  # what stands for the hardware keeps its keys there
    assert b"PRIVATE KEY" not in everything_written(tmp_path)
    for pid in [gateway.process.pid, *children(gateway)]:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [link for link in links if "memfd:tls" in link], "each was closed when it had been read"


def statuses(gateway: Served, caller: Caller) -> set[int]:
    """Those of the answers, outside and inside the seal: ask both workers, over new connections, for something sealed to what `caller` has verified."""
    found = set()
    for _ in range(12):
        data, opener = sealed.seal_request(
            RequestHead(method="GET", target="/v1/models"),
            b"",
            keys=caller.verdict.statement.keys,
            statement=caller.verdict.statement_digest,
            now=datetime.now(UTC),
        )
        kind = {"content-type": sealed.REQUEST_TYPE}
        url = gateway.origin + sealed.PATH
        answer = httpx.post(url, content=data, headers=kind, verify=untrusting(), trust_env=False)
        found.add(answer.status_code)
        opener.feed(answer.content)
        found.add(opener.head.status if opener.head is not None else 0)
    return found


def test_worker_killed_in_a_rollover(tmp_path: Path, values: dict[str, Any]) -> None:
    """A worker that dies between a successor's making and its take-over is replaced by one that has both identities;
    the take-over waits for it, and the old identity goes on to answer in both workers."""
    values |= {"identity_hours": 2.5 * OVERLAP / 3600, "identity_overlap_minutes": OVERLAP / 60}
    with served(tmp_path / "gateway", **values) as gateway:
        policy = gateway.policy()
        made = count(gateway, "identity takes over")
        until(lambda: count(gateway, "identity takes over") > made, 30)  # so that the next is far off
        made = count(gateway, "identity takes over")
        with Caller(gateway.origin, policy) as before:
            gateway.process.send_signal(signal.SIGSTOP)  # it sees the death and makes keys when it wakes up
            victim = workers(gateway)[0]
            threading.Event().wait(before.verdict.statement.not_after - 1 - OVERLAP - time.time() + 0.5)
            os.kill(victim, signal.SIGKILL)
            gateway.process.send_signal(signal.SIGCONT)
            until(lambda: count(gateway, "identity takes over") == made + 1)
            assert count(gateway, "worker ended, another takes its place") == 1
            assert len(workers(gateway)) == 2
            assert victim not in workers(gateway)
            with Caller(gateway.origin, policy) as after:
                assert after.verdict.statement_digest != before.verdict.statement_digest
                assert statuses(gateway, before) == {200}
                assert statuses(gateway, after) == {200}
