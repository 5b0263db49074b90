"""A thousand requests over one session while the enclave is killed, impersonated, and comes back with other keys.

None is sent to an enclave that was not verified, none hangs, and whatever fails has a name.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from attestation.errors import AttestationError, UnavailableError
from client_sdk import AsyncAttestedClient, AsyncOpenAI, Trust
from tests.client_sdk.conftest import Impostor
from tests.client_sdk.test_nothing_leaves import EVIDENCE
from tests.enclave_server.fake_vllm import fake_python
from tests.served import Served, model_settings, served

REQUESTS, CONNECTIONS = 1000, 50
ASKED: dict[str, Any] = {
    "model": "fake-model",
    "messages": [{"role": "user", "content": "the secret prompt"}],
}


@pytest.fixture
def enclave(tmp_path: Path) -> Iterator[Served]:
    """The gateway's own command, with an engine that takes its time."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "gateway").mkdir()
    python = fake_python(tmp_path / "python", behaviour={"delay": 0.05, "chunks": 5})
    values: dict[str, Any] = {
        **model_settings(model, "fake-model"),
        "engine_python": str(python),
        "evidence_burst": 100,
    }
    with served(tmp_path / "gateway", **values) as running:
        yield running


@dataclass
class Load:
    """All requests at once, and how each of them ended: the statement it was verified under, or an error's name."""

    client: AsyncOpenAI
    ended: list[str] = field(default_factory=list)

    async def run(self) -> None:
        await asyncio.gather(*(self._ask(number % 2 == 0) for number in range(REQUESTS)))

    async def reached(self, count: int) -> None:
        while len(self.ended) < count:  # noqa: ASYNC110 - a test may look again and again
            await asyncio.sleep(0.02)

    async def _ask(self, streamed: bool) -> None:
        tries, how = 0, UnavailableError.__name__
        while how == UnavailableError.__name__ and tries < 20:  # the only error that says: later
            await asyncio.sleep(min(tries, 1) * 0.5)
            tries, how = tries + 1, await self._end(streamed)
        self.ended.append(how)

    async def _end(self, streamed: bool) -> str:
        chat = self.client.chat.completions
        try:
            answer: Any = await (chat.create(stream=True, **ASKED) if streamed else chat.create(**ASKED))
            if streamed:
                [chunk async for chunk in answer]
        except (AttestationError, openai.APIError) as error:
            return type(error).__name__
        assert answer.attestation.receipt is not None
        digest: str = answer.attestation.verdict.statement_digest.hex()
        return digest


async def go_through_it(load: Load, enclave: Served, impostor: Impostor) -> None:
    """The engine is killed; then the gateway, and somebody else answers at its address; then it is back with other keys."""
    await load.reached(100)
    os.kill(enclave.engine_pid(), signal.SIGKILL)
    await load.reached(300)
    enclave.process.kill()
    await asyncio.to_thread(enclave.process.wait)
    await asyncio.to_thread(impostor.serve, 30)
    enclave.start()
    await asyncio.to_thread(enclave.until_ready, 30)


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_thousand_requests_while_keys_change(enclave: Served, tmp_path: Path) -> None:
    """Each ends with a verified answer, under the old keys or the new ones, or with an error that says what happened."""
    trust = Trust(enclave.policy())
    impostor = Impostor(tmp_path, int(enclave.origin.rpartition(":")[2]))
    limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    http_client = AsyncAttestedClient(trust, transport_options={"limits": limits})
    async with AsyncOpenAI(
        base_url=f"{enclave.origin}/v1",
        http_client=http_client,
        api_key="secret-key",
        timeout=60,
        max_retries=4,
    ) as client:
        load = Load(client)
        async with asyncio.timeout(120), asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            tasks.create_task(go_through_it(load, enclave, impostor))
    ended = Counter(load.ended)
    assert sum(ended.values()) == REQUESTS
    answered = {name: count for name, count in ended.items() if len(name) == 64}
    assert len(answered) == 2, f"under the keys of both boots: {ended}"
    assert sum(answered.values()) > REQUESTS / 3, ended
    assert b"GET /.well-known/attestation" in b"".join(impostor.heard), "it was there, and asked"
    assert all(EVIDENCE.fullmatch(heard) for heard in impostor.heard), impostor.heard
    assert trust.session(enclave.origin).attempts < 40, "one at a time, and not one for each request"
