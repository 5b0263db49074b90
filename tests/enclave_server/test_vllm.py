"""The gateway with real vLLM: every route, and the life cycle with real signals. A start takes half a minute."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from attestation.receipt import Outcome
from enclave_server.peek import DEFAULTS
from tests.caller import Caller
from tests.processes import running_with, until
from tests.served import VLLM_SECONDS, Served, everything_written, served, vllm_settings

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3 * VLLM_SECONDS)]

CANARY = "Canary91c4Plugh"
LONG: dict[str, Any] = {
    "model": "tiny",
    "prompt": "once",
    "n": 8,
    "max_tokens": 480,
    "ignore_eos": True,
    "stream": True,
}


@pytest.fixture
def caller(vllm_gateway: Served) -> Iterator[Caller]:
    with Caller(vllm_gateway.origin, vllm_gateway.policy()) as verified:
        yield verified


def test_statement(caller: Caller) -> None:
    """The statement names the engine's version and the flags that change answers, and the model by its files."""
    engine = caller.verdict.statement.engine
    assert engine.name == "vllm"
    assert engine.version[0].isdecimal()
    assert "--load-format=safetensors" in engine.flags
    assert "--dtype=float32" in engine.flags
    assert caller.verdict.statement.model.digest.hex() == vllm_settings()["model_digest"]


def test_models(caller: Caller) -> None:
    """The served model is listed under its served name."""
    assert [model["id"] for model in caller.get("/v1/models").json["data"]] == ["tiny"]


def test_chat(caller: Caller) -> None:
    """A plain chat answer, its tokens counted; the same seed gives the same words."""
    first, second = (caller.chat("hi", max_tokens=8, seed=1, temperature=1) for _ in range(2))
    assert first.outcome is Outcome.COMPLETE
    assert first.receipt.usage is not None
    assert first.receipt.usage.completion_tokens == first.json["usage"]["completion_tokens"]
    assert first.json["choices"] == second.json["choices"]
    assert first.receipt.sampling == {**DEFAULTS, "seed": 1, "max_tokens": 8}


def test_chat_streamed(caller: Caller) -> None:
    """A streamed chat answer is whole, with the token counts of its last chunk."""
    answer = caller.chat("hi", max_tokens=8, stream=True, stream_options={"include_usage": True})
    assert answer.outcome is Outcome.COMPLETE
    assert answer.events[-1] == "[DONE]"
    assert answer.receipt.usage is not None
    assert answer.receipt.usage.completion_tokens == answer.events[-2]["usage"]["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_completions(caller: Caller, stream: bool) -> None:
    """The completions route, plain and streamed."""
    answer = caller.post(
        "/v1/completions", {"model": "tiny", "prompt": "once", "max_tokens": 8, "stream": stream}
    )
    assert answer.outcome is Outcome.COMPLETE


def test_engine_refusals(caller: Caller) -> None:
    """What vLLM refuses comes through in its own words, signed as an error."""
    for body, status in (
        ({"model": "other", "prompt": "x"}, 404),
        ({"model": "tiny", "prompt": "x", "max_tokens": 100_000}, 400),
        ({"model": "tiny", "prompt": "x", "n": 100}, 400),
    ):
        answer = caller.post("/v1/completions", body)
        assert (answer.status, answer.outcome) == (status, Outcome.ERROR)


def test_many_streams(caller: Caller) -> None:
    """Streams at the same time do not mix, and each is whole."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: caller.chat(f"number {n}", max_tokens=16, stream=True), range(16)))
    assert {answer.outcome for answer in answers} == {Outcome.COMPLETE}
    assert len({answer.events[0]["id"] for answer in answers}) == 16


def test_client_goes_away(caller: Caller, vllm_gateway: Served) -> None:
    """vLLM stops generating for a client that hung up: by its own count, not all tokens were made.

    The tiny model needs about a second for all of them; on a busy machine hanging up may come too late, but not always.
    """
    made = []
    for _ in range(4):
        before = metric(vllm_gateway, "generation_tokens_total")
        pieces = caller.stream("/v1/completions", LONG)
        next(pieces)
        pieces.close()
        until(lambda: metric(vllm_gateway, "num_requests_running") == 0)
        made.append(metric(vllm_gateway, "generation_tokens_total") - before)
        if made[-1] < LONG["n"] * LONG["max_tokens"]:
            return
    pytest.fail(f"every answer was generated to its end: {made} tokens")


def metric(gateway: Served, name: str) -> float:
    """One of vLLM's own counts, asked on its socket behind the gateway's back."""
    transport = httpx.HTTPTransport(uds=str(engine_home(gateway) / "vllm.sock"))
    with httpx.Client(transport=transport, base_url="http://engine") as engine:
        found = re.search(rf"^vllm:{name}{{.*}} ([\d.]+)$", engine.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_isolation(vllm_gateway: Served) -> None:
    """The engine listens nowhere but on its socket: its processes see no network of ours, where the kernel allows it."""
    engine = vllm_gateway.engine_pid()
    start = next(json.loads(line) for line in vllm_gateway.log.splitlines() if '"engine starts"' in line)
    if "net" not in start["isolation"]:
        pytest.skip("the kernel allows no namespaces here")
    assert Path(f"/proc/{engine}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


def test_canary(caller: Caller, vllm_gateway: Served) -> None:
    """A marked prompt, answered, streamed and refused, is in nothing that gateway and vLLM wrote."""
    caller.chat(CANARY, max_tokens=4)
    caller.chat(CANARY, max_tokens=4, stream=True)
    caller.post("/v1/completions", {"model": "tiny", "prompt": CANARY, "max_tokens": 4})
    caller.post("/v1/completions", {"model": CANARY, "prompt": CANARY})
    caller.post("/v1/completions", {"model": "tiny", "prompt": {"bad": CANARY}, "logprobs": CANARY})
    caller.post(
        "/v1/chat/completions", {"model": "tiny", "messages": [{"role": CANARY, "content": [CANARY]}]}
    )
    caller.chat(CANARY * 2000, max_tokens=4)
    assert vllm_gateway.log
    assert CANARY.encode() not in everything_written(vllm_gateway.folder, engine_home(vllm_gateway))


def test_life_cycle(tmp_path: Path) -> None:
    """kill -9 of each process of vLLM in mid-stream, restarts, a drain, kill -9 of the gateway: nothing lost, nothing left."""
    with TemporaryDirectory(prefix="run-") as run:
        stale = Path(run, "engine")
        stale.mkdir()
        (stale / "vllm.sock").touch()
        values = {**vllm_settings(), "runtime_dir": run, "drain_seconds": 120}
        with served(tmp_path, seconds=VLLM_SECONDS, **values) as gateway:
            with Caller(gateway.origin, gateway.policy()) as caller:
                killed_in_mid_stream(gateway, caller, gateway.engine_pid())
                killed_in_mid_stream(gateway, caller, engine_core(gateway))
                answer = caller.watch("/v1/completions", LONG, gateway.process.terminate)
                assert answer.outcome is Outcome.COMPLETE
                assert gateway.process.wait(120) == 0
            assert left_over(stale) == []
            gateway.start()
            until(lambda: (stale / "vllm.sock").exists() or engine_core(gateway), VLLM_SECONDS)
            gateway.process.kill()
            until(lambda: not left_over(stale))
            until(lambda: not stale.exists())


def killed_in_mid_stream(gateway: Served, caller: Caller, victim: int) -> None:
    """The stream ends with an error and a verified `aborted`; meanwhile 503; then the engine serves again."""
    verdict = caller.verdict
    answer = caller.watch("/v1/completions", LONG, lambda: os.kill(victim, signal.SIGKILL))
    assert (answer.status, answer.outcome) == (200, Outcome.ABORTED)
    assert any("error" in event for event in answer.events if event != "[DONE]")
    until(lambda: not gateway.ready())
    refused = caller.chat("hello?", max_tokens=4)
    assert (refused.status, refused.outcome) == (503, Outcome.ERROR)
    assert refused.headers["retry-after"]
    gateway.until_ready(VLLM_SECONDS)
    assert caller.chat("hello again", max_tokens=4).outcome is Outcome.COMPLETE
    assert caller.verify(gateway.policy()).statement == verdict.statement


def engine_core(gateway: Served) -> int:
    """vLLM's inner process, in the engine's group; 0 when there is none."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    group = str(gateway.engine_pid())
    return next(
        (int(pid) for pid, pgid, args in rows if pgid == group and args.startswith("VLLM::EngineCore")), 0
    )


def engine_home(gateway: Served) -> Path:
    variables = Path(f"/proc/{gateway.engine_pid()}/environ").read_bytes().split(b"\0")
    return Path(next(v for v in variables if v.startswith(b"HOME="))[5:].decode())


def left_over(private: Path) -> list[Any]:
    """Processes that were started for this directory."""
    return running_with(str(private))
