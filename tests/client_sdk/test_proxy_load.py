"""The proxy under load while an enclave is lost or starts again: every caller gets a whole answer or a named error, at once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from tests.client_sdk.conftest import Switch
from tests.client_sdk.live_proxy import ASKED, CHAT, STREAMED, LiveProxy, live_proxy
from tests.client_sdk.test_proxy_failures import Pair, pair
from tests.servers import FakeEngine, LiveGateway

__all__ = ["pair"]
pytestmark = pytest.mark.slow
CALLERS, EACH = 40, 4
NAMED = {"stream.truncated", "sealed.truncated", "enclave_unreachable", "evidence.fetch", "receipt.outcome"}
SAID = {"stopping", "engine_starting"}  # by the enclave itself, and signed


class Load:
    """Many callers at once, every other one of streams; how each request ended, and who answered it."""

    def __init__(self, proxy: LiveProxy) -> None:
        self.proxy = proxy
        self.ended: list[tuple[str, str]] = []
        self.begun = asyncio.Event()

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=CALLERS)
        async with httpx.AsyncClient(base_url=self.proxy.origin, limits=limits, timeout=60) as client:
            await asyncio.gather(*(self._caller(client, number) for number in range(CALLERS)))

    async def _caller(self, client: httpx.AsyncClient, number: int) -> None:
        for _ in range(EACH):
            self.ended.append(await self._one(client, STREAMED if number % 2 else ASKED))

    async def _one(self, client: httpx.AsyncClient, asked: dict[str, Any]) -> tuple[str, str]:
        body = b""
        async with client.stream("POST", CHAT, json=asked) as answer:
            who = answer.headers["X-Attested-Enclave"]
            try:
                async for part in answer.aiter_raw():
                    body += part
                    self.begun.set()
            except httpx.RemoteProtocolError:  # the body does not end: no client takes it for a whole one
                assert b"[DONE]" not in body
                return _code(body.rpartition(b"event: error\ndata: ")[2]), who
            if answer.status_code != 200:
                return _code(body), who
        assert body.endswith(b"data: [DONE]\n\n") if "stream" in asked else b"You said: hello" in body
        return "whole", who


def _code(error: bytes) -> str:
    code: str = json.loads(error)["error"]["code"]
    return code


async def test_one_of_two_is_lost_in_mid_stream(pair: Pair) -> None:
    """Streams that were cut and requests that may have begun end in errors with names; all others go to the other enclave."""
    (one, two), engines, proxy = pair
    with Switch(one.settings.port) as switch:
        first = proxy.proxy.upstreams[0]
        first.url, first.origin = httpx.URL(switch.origin), switch.origin
        for engine in engines:
            engine.behaviour.delay = 0.05
        load = Load(proxy)
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await load.begun.wait()
            switch.refuse = True
            await asyncio.to_thread(switch.cut)
    how = Counter(code for code, _ in load.ended)
    assert how.total() == CALLERS * EACH
    assert how.keys() <= NAMED | {"whole"}
    assert 0 < how.total() - how["whole"] <= CALLERS, how  # what was under way, and nothing after it
    assert {who for code, who in load.ended[-CALLERS:]} == {two.origin}
    asked = sum(request.path == CHAT for engine in engines for request in engine.requests)
    assert asked <= how.total(), "none was asked twice"


async def test_an_enclave_starts_again_under_streams(
    tmp_path: Any, gateway: LiveGateway, engine: FakeEngine
) -> None:
    """With other keys: streams end well or by a name, and every later request is verified under the new statement."""
    engine.behaviour.delay = 0.05
    with live_proxy(tmp_path, gateway.policy_text, gateway.origin) as proxy:
        load, before = Load(proxy), gateway.identity.statement_digest
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await load.begun.wait()
            await asyncio.to_thread(gateway.restart)
        how = Counter(code for code, _ in load.ended)
        assert how.total() == CALLERS * EACH
        assert how.keys() <= NAMED | SAID | {"whole"}, how
        answer = await asyncio.to_thread(httpx.post, proxy.origin + CHAT, json=ASKED)
    assert answer.headers["X-Attested-Statement"] == gateway.identity.statement_digest.hex() != before.hex()
