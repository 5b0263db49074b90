"""One client used from many places at once or in turn: threads, tasks, event loops; one attestation for all of them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
import httpx2
import pytest

from attestation.errors import AttestationError
from client_sdk import AsyncOpenAI, Trust, async_attested_transport, attested_transport
from client_sdk.session import Verified
from tests.client_sdk.conftest import Recorded
from tests.client_sdk.transported import Clock
from tests.client_sdk.trusting import AGE, renewals, settled
from tests.processes import until
from tests.servers import MODEL

ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello you"}]}
MODELS = "/v1/models"
LIBRARIES = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])

# Of loops that have ended, where nobody is left to close them.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What is left of them goes here, and not in another file's test."""
    yield
    gc.collect()


@LIBRARIES
def test_one_event_loop_after_another(recorded: Recorded, http: Any) -> None:
    """A client is no loop's: in the next one it makes other connections, and needs no other attestation."""
    transport = async_attested_transport(recorded.gateway.policy_text, http.__name__)
    client = http.AsyncClient(transport=transport)

    async def ask() -> list[int]:
        answers = await asyncio.gather(*(client.get(recorded.gateway.origin + MODELS) for _ in range(3)))
        return [answer.status_code for answer in answers]

    assert [asyncio.run(ask()) for _ in range(3)] == [[200] * 3] * 3
    asyncio.run(client.aclose())
    assert recorded.recorder.attestations() == 1


def test_openais_class_in_one_event_loop_after_another(recorded: Recorded) -> None:
    """Without a retry, plain and streamed."""
    gateway = recorded.gateway
    client = AsyncOpenAI(base_url=gateway.url, policy=gateway.policy_text, api_key="k", max_retries=0)

    async def ask() -> int:
        await client.chat.completions.create(**ASKED)
        return len([chunk async for chunk in await client.chat.completions.create(stream=True, **ASKED)])

    assert len({asyncio.run(ask()) for _ in range(3)}) == 1
    asyncio.run(client.close())
    assert recorded.recorder.attestations() == 1


@LIBRARIES
def test_several_event_loops_at_once(recorded: Recorded, http: Any) -> None:
    """Loops in threads share a client, each with connections of its own, and one that ends takes nothing from the others."""
    transport = async_attested_transport(recorded.gateway.policy_text, http.__name__)
    client = http.AsyncClient(transport=transport)
    start = threading.Barrier(4)

    async def ask(times: int) -> set[int]:
        return {(await client.get(recorded.gateway.origin + MODELS)).status_code for _ in range(times)}

    def loop(number: int) -> set[int]:
        start.wait(60)
        return asyncio.run(ask(3 * (number + 1)))

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(loop, range(4))) == [{200}] * 4
    asyncio.run(client.aclose())
    assert recorded.recorder.attestations() == 1


@LIBRARIES
@pytest.mark.parametrize("cancelled", [1, 5])
async def test_who_gives_up_during_an_attestation_takes_nobody_with_them(
    recorded: Recorded, http: Any, cancelled: int
) -> None:
    """The first to come, or most of all, are cancelled while the evidence is on its way: it serves the rest all the same."""
    recorded.recorder.delay = 60
    transport = async_attested_transport(recorded.gateway.policy_text, http.__name__)
    async with http.AsyncClient(transport=transport) as client:
        tasks = [asyncio.create_task(client.get(recorded.gateway.origin + MODELS)) for _ in range(6)]
        await asyncio.to_thread(until, lambda: recorded.recorder.attestations() == 1)
        for task in tasks[:cancelled]:
            task.cancel()
        await asyncio.wait(tasks[:cancelled])
        recorded.recorder.delay = 0
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        again = await client.get(recorded.gateway.origin + MODELS)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended[:cancelled])
    assert [end.status_code for end in ended[cancelled:]] == [200] * (6 - cancelled)  # type: ignore[union-attr]
    assert again.status_code == 200
    assert recorded.recorder.attestations() == 1


async def test_when_all_give_up_the_next_one_has_the_verdict(recorded: Recorded) -> None:
    """Nobody waits any more, and what was asked for is not asked for again."""
    recorded.recorder.delay = 60
    transport = async_attested_transport(recorded.gateway.policy_text)
    async with httpx.AsyncClient(transport=transport) as client:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.get(recorded.gateway.origin + MODELS), 0.05)
        recorded.recorder.delay = 0
        assert (await client.get(recorded.gateway.origin + MODELS)).status_code == 200
    assert recorded.recorder.attestations() == 1


def test_a_renewal_outlives_the_loop_that_began_it(recorded: Recorded) -> None:
    """The loop is closed while the renewal is on its way: it ends well, and serves the next loop."""
    clock, origin = Clock(), recorded.gateway.origin
    trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
    client = httpx.AsyncClient(transport=async_attested_transport(trust))

    async def ask() -> int:
        return (await client.get(origin + MODELS)).status_code

    assert asyncio.run(ask()) == 200
    clock.ahead, recorded.recorder.delay = AGE * 0.81, 60
    assert asyncio.run(ask()) == 200
    assert renewals(), "it goes on without the loop"
    recorded.recorder.delay = 0
    until(settled)
    clock.ahead = AGE * 1.2
    state = trust.state(origin)
    assert isinstance(state, Verified)
    assert state.failure is None
    assert asyncio.run(ask()) == 200
    asyncio.run(client.aclose())
    until(settled)
    assert recorded.recorder.attestations() == 2


@LIBRARIES
def test_threads_that_share_a_client_while_the_enclave_restarts(recorded: Recorded, http: Any) -> None:
    """Each request is answered under one of the boots' keys or fails by a name; attestations are for boots, not for requests."""
    gateway, over = recorded.gateway, threading.Event()
    transport = attested_transport(gateway.policy_text, http.__name__, max_age=timedelta(minutes=5))
    keys: set[bytes] = set()
    end = time.monotonic() + 600

    def ask(client: Any) -> int:
        answered = 0
        while not (over.is_set() and answered) and time.monotonic() < end:
            try:
                answer = client.get(gateway.origin + MODELS)
            except (AttestationError, http.TransportError):
                continue
            keys.add(answer.extensions["attestation"].verdict.statement_digest)
            answered += 1
        return answered

    with http.Client(transport=transport) as client, ThreadPoolExecutor(8) as threads:
        work = [threads.submit(ask, client) for _ in range(8)]
        try:
            until(lambda: keys)
            gateway.restart()
            until(lambda: len(keys) == 2)
        finally:
            over.set()
        assert all(each.result(60) for each in work)
        last = client.get(gateway.origin + MODELS).extensions["attestation"].verdict.statement_digest
    assert last in keys
    assert len(keys) == 2
    assert recorded.recorder.attested <= 6, "of one that starts, many may have been refused"
