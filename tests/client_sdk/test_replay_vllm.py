"""Replays with real vLLM in float32: honest answers are equal both ways, and a token that was swapped is found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from attestation.bundle import dump_bundle, parse_bundle
from client_sdk.exits import ExitCode
from client_sdk.transport import attested_transport
from tests.caller import Caller
from tests.client_sdk.test_cli import attested
from tests.enclave_server.test_vllm import engine_home
from tests.served import VLLM_SECONDS, Served, vllm_settings
from tests.servers import FakeEngine, LiveGateway, live_gateway

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3 * VLLM_SECONDS)]

REPLAY = {"Attested-Replay": "1"}
GREEDY, SEEDED = {"temperature": 0}, {"temperature": 1, "seed": 11}
ASKED: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "ignore_eos": True}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**ASKED, "messages": [{"role": "user", "content": "what is a file?"}]},
    "/v1/completions": {**ASKED, "prompt": "a file is"},
}


@dataclass
class Auditor:
    """Saves answers of one gateway, and has them run again by vLLM behind the other."""

    folder: Path
    gateway: Served
    policy: Path = field(init=False)

    def __post_init__(self) -> None:
        self.policy = self.folder / "policy.toml"
        self.policy.write_text(self.gateway.policy())

    def record(self, path: str, body: dict[str, Any], origin: str = "") -> Path:
        file = self.folder / "answer.json"
        with httpx.Client(transport=attested_transport(self.policy), timeout=VLLM_SECONDS) as client:
            answer = client.post((origin or self.gateway.origin) + path, json=body, headers=REPLAY)
            assert answer.status_code == 200, answer.text
            answer.extensions["attestation"].save(file)
        return file

    def replay(self, file: Path, *options: str) -> tuple[int, Any]:
        where = ("--policy", str(self.policy), "--engine", self.gateway.origin)
        done = attested("replay", str(file), *where, "--json", *options)
        return done.returncode, json.loads(done.stdout)


@pytest.fixture
def auditor(tmp_path: Path, vllm_gateway: Served) -> Auditor:
    return Auditor(tmp_path, vllm_gateway)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_equal(auditor: Auditor, path: str, stream: bool, sampling: dict[str, Any]) -> None:
    """Run again, and read once: the same tokens, and log-probabilities within the tolerance."""
    logprobs: Any = {"logprobs": True} if "chat" in path else {"logprobs": 0}
    file = auditor.record(path, {**ROUTES[path], **sampling, **logprobs, "stream": stream})
    for method in ("rerun", "prefill"):
        code, found = auditor.replay(file, "--method", method)
        assert (code, found["verdict"], found["compared"]["tokens"]) == (0, "equal", 24), found
        assert 0 <= found["compared"]["worst"] < 1e-4


def test_several_choices_among_others(auditor: Auditor) -> None:
    """Three seeded choices, streamed while other requests are in the batch."""
    body = {**ROUTES["/v1/completions"], **SEEDED, "n": 3, "stream": True}
    with Caller(auditor.gateway.origin, auditor.policy.read_text()) as caller, ThreadPoolExecutor(4) as pool:
        others = [pool.submit(caller.chat, f"number {n}", max_tokens=64) for n in range(8)]
        file = auditor.record("/v1/completions", body)
        for other in others:
            other.result()
    code, found = auditor.replay(file)
    assert (code, found["verdict"], found["compared"]["tokens"]) == (0, "equal", 72), found


def test_a_swapped_token_in_the_file(auditor: Auditor) -> None:
    """Refused by the receipt."""
    file = auditor.record("/v1/completions", {**ROUTES["/v1/completions"], **GREEDY})
    bundle = parse_bundle(file.read_bytes())
    (exchange,) = bundle.exchanges
    answer = json.loads(exchange.response or b"")
    answer["choices"][0]["token_ids"][7] += 1
    altered = replace(exchange, response=json.dumps(answer).encode())
    file.write_bytes(dump_bundle(replace(bundle, exchanges=(altered,))))
    code, found = auditor.replay(file)
    assert (code, found["verdict"], found["check"]) == (ExitCode.NOT_AUTHENTIC, "refused", "receipt.response")


class Liar(FakeEngine):
    """Real vLLM's answers with one token exchanged."""

    behind: Path
    at: int
    real = 0

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        transport = httpx.AsyncHTTPTransport(uds=str(self.behind))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", timeout=60) as engine:
            body, head = await request.read(), {"Content-Type": "application/json"}
            told = (await engine.post("/v1/completions", content=body, headers=head)).json()
        ids = told["choices"][0]["token_ids"]
        self.real, ids[self.at] = ids[self.at], (ids[self.at] + 1) % 1000
        return web.json_response(told)


@pytest.fixture
def liar(
    auditor: Auditor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[LiveGateway, Liar]]:
    """A gateway with the same model, engine and flags in its statement, and an engine that does as it likes."""
    with Caller(auditor.gateway.origin, auditor.policy.read_text()) as caller:
        statement = caller.verdict.statement
    monkeypatch.setattr("tests.servers.VERSION", statement.engine.version)
    settings = {**vllm_settings(), "simulator_dir": auditor.gateway.folder / "simulator"}
    with Liar(tmp_path / "liar.sock") as engine, live_gateway(tmp_path, engine=engine, **settings) as gateway:
        engine.behind = engine_home(auditor.gateway) / "vllm.sock"
        mine, theirs = statement.config.hex(), gateway.identity.statement.config.hex()
        accepted = auditor.policy.read_text().replace(f'"{mine}"', f'"{mine}", "{theirs}"')
        auditor.policy.write_text(accepted)
        yield gateway, engine


@pytest.mark.parametrize("method", ["rerun", "prefill"])
def test_a_lying_engine(auditor: Auditor, liar: tuple[LiveGateway, Liar], method: str) -> None:
    """Its receipt holds, and an honest node tells which token it exchanged, and for what."""
    gateway, engine = liar
    engine.at = 13
    file = auditor.record("/v1/completions", {**ROUTES["/v1/completions"], **GREEDY}, gateway.origin)
    code, found = auditor.replay(file, "--method", method)
    assert (code, found["verdict"], found["check"]) == (
        ExitCode.NOT_AUTHENTIC,
        "diverged",
        "replay.tokens",
    ), found
    parting = found["divergence"]
    assert (parting["choice"], parting["position"], parting["where"]) == (0, 13, "output")
    assert parting["engine"]["token"] == engine.real
    assert parting["recorded"]["token"] == (engine.real + 1) % 1000
    assert parting["engine"]["logprob"] > parting["recorded"]["logprob"]
