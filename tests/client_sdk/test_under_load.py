"""A thousand requests over one session while keys change, the engine dies, and somebody else answers in the enclave's place.

Keys change in both ways there are: the gateway's own rollover, and another boot. None is sent to an enclave that was not
verified, none hangs, and whatever fails has a name.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from attestation.errors import AttestationError, UnavailableError
from client_sdk import AsyncAttestedClient, AsyncOpenAI, Trust
from tests.client_sdk.conftest import Impostor, Switch
from tests.client_sdk.test_nothing_leaves import EVIDENCE
from tests.enclave_server.fake_settings import fake_settings
from tests.processes import until
from tests.served import Served, served
from tests.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
REQUESTS, AFTER, CONNECTIONS = 1000, 300, 50
LIFE, OVERLAP = 16, 8  # seconds: keys roll over every eight
ASKED: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "the secret prompt"}],
}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Settings of a gateway with two workers and an engine that takes its time."""
    return {
        **fake_settings(tmp_path, delay=0.05, chunks=5),
        "evidence_burst": 100,
        "workers": 2,
    }


@dataclass
class Load:
    """All requests at once but the last ones, and how each ended: the statement it was verified under, or an error's name."""

    client: AsyncOpenAI
    ended: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # the last ones wait for it

    async def run(self) -> None:
        await asyncio.gather(*map(self._ask, range(REQUESTS)))

    async def reached(self, count: int) -> None:
        while len(self.ended) < count:  # noqa: ASYNC110 - a test may look again and again
            await asyncio.sleep(0.02)

    async def _ask(self, number: int) -> None:
        if number >= REQUESTS - AFTER:
            await self.changed.wait()
        tries, how = 0, UnavailableError.__name__
        while how == UnavailableError.__name__ and tries < 20:  # the only error that says: later
            await asyncio.sleep(min(tries, 1) * 0.5)
            tries, how = tries + 1, await self._end(streamed=number % 2 == 0)
        self.ended.append(how)

    async def _end(self, *, streamed: bool) -> str:
        chat = self.client.chat.completions
        try:
            answer: Any = await (chat.create(stream=True, **ASKED) if streamed else chat.create(**ASKED))
            if streamed:
                [chunk async for chunk in answer]
        except (AttestationError, openai.APIError) as error:
            return type(error).__name__
        statement: bytes = answer.attestation.verdict.statement_digest
        assert answer.attestation.receipt.statement == statement
        return statement.hex()


@dataclass
class Scene:
    """The enclave, and who stands between it and the client."""

    enclave: Served
    switch: Switch
    impostor: Impostor

    async def impersonated(self) -> None:
        """Every connection breaks, and new ones come to somebody else, until something was said there."""
        self.switch.port = self.impostor.port
        self.switch.cut()
        await asyncio.to_thread(self.impostor.serve, 30)
        self.switch.port = self.enclave.port
        self.switch.cut()

    def successors(self) -> set[str]:
        """The statements that took over from another in the same boot."""
        made = [
            json.loads(line) for line in self.enclave.log.splitlines() if '"event": "identity made"' in line
        ]
        return {line["statement"] for line in made}


async def rolls_over(scene: Scene, load: Load) -> None:
    """The engine is killed; somebody else answers for a while; then the gateway's keys roll over."""
    await load.reached(100)
    os.kill(scene.enclave.engine_pid(), signal.SIGKILL)
    await load.reached(200)
    await scene.impersonated()
    await load.reached(300)
    before = scene.enclave.log.count('"event": "identity takes over"')
    await asyncio.to_thread(
        until, lambda: scene.enclave.log.count('"event": "identity takes over"') > before, LIFE
    )
    load.changed.set()


async def boots_again(scene: Scene, load: Load) -> None:
    """The engine is killed; then the gateway, and somebody else answers at its address; then it is back with other keys."""
    await load.reached(100)
    os.kill(scene.enclave.engine_pid(), signal.SIGKILL)
    await load.reached(300)
    scene.enclave.process.kill()
    await asyncio.to_thread(scene.enclave.process.wait)
    await scene.impersonated()
    scene.enclave.start()
    await asyncio.to_thread(scene.enclave.until_ready, 30)
    load.changed.set()


ROLLING = {"identity_hours": LIFE / 3600, "identity_overlap_minutes": OVERLAP / 60}


@pytest.mark.parametrize(("change", "boots", "settings"), [(rolls_over, 1, ROLLING), (boots_again, 2, {})])
async def test_a_thousand_requests_while_keys_change(
    tmp_path: Path,
    values: dict[str, Any],
    change: Callable[[Scene, Load], Coroutine[Any, Any, None]],
    boots: int,
    settings: dict[str, Any],
) -> None:
    """Each ends with an answer verified under keys of the enclave's, the first or later ones, or with an error that says what happened."""
    with served(tmp_path / "gateway", **values, **settings) as enclave, Switch(enclave.port) as switch:
        trust = Trust(enclave.policy())
        impostor = Impostor(tmp_path, free_port())
        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        http_client = AsyncAttestedClient(trust, transport_options={"limits": limits})
        options: dict[str, Any] = {"api_key": "secret-key", "timeout": 60, "max_retries": 4}
        async with AsyncOpenAI(base_url=f"{switch.origin}/v1", http_client=http_client, **options) as client:
            load, scene = Load(client), Scene(enclave, switch, impostor)
            async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
                tasks.create_task(load.run())
                tasks.create_task(change(scene, load))
        successors = scene.successors()
    ended = Counter(load.ended)
    assert sum(ended.values()) == REQUESTS
    answered = {name: count for name, count in ended.items() if len(name) == 64}
    assert len(answered) >= 2, f"under the keys before and after: {ended}"
    assert len(answered.keys() - successors) <= boots, "each boot's first, and nobody else's"
    assert bool(answered.keys() & successors) is (boots == 1), ended
    assert sum(answered.values()) > REQUESTS / 3, ended
    assert b"GET /.well-known/attestation" in b"".join(impostor.heard), "it was there, and asked"
    assert all(EVIDENCE.fullmatch(heard) for heard in impostor.heard), impostor.heard
    assert trust.session(switch.origin).attempts < 40, "one at a time, and not one for each request"
