"""Keys with the installed command: created, used, revoked, and found in nothing that was written."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from attestation.receipt import Outcome
from enclave_server.__main__ import cli
from tests.caller import Caller
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.fake_vllm import starts
from tests.processes import until
from tests.served import Served, everything_written, served
from tests.servers import MODEL, FakeEngine, free_port

CANARY = "Canary7f3a9eXyzzyError"


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return {**fake_settings(tmp_path), "access": "keys", "drain_seconds": 1}


def keys(gateway: Served, *arguments: str) -> str:
    """What `enclave-server keys` prints, without another interpreter; some tests here start the real one."""
    done = CliRunner().invoke(cli, ["keys", *arguments, "--config", str(gateway.config)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_workers_share_a_limit(tmp_path: Path, values: dict[str, Any], engine: FakeEngine) -> None:
    """A key's rate and its requests at once are one limit, whichever worker a connection comes to, and its use adds up."""
    values |= {"engine": f"http+unix://{engine.socket}", "model_name": MODEL}
    del values["engine_python"]
    with served(tmp_path / "gateway", workers=2, access_refresh_seconds=0.2, **values) as gateway:
        key = keys(gateway, "create", "one", "--requests-per-minute", "8").strip()
        until_known(gateway)
        with Caller(gateway.origin, gateway.policy()) as caller:
            headers = {"authorization": f"Bearer {key}", "connection": "close"}
            answers = [caller.call("GET", "/v1/models", headers=headers) for _ in range(40)]
        assert [answer.status for answer in answers] == [200] * 8 + [429] * 32
        assert len({answer.receipt.id.rpartition("-")[0] for answer in answers}) == 2
        assert at_once(gateway, engine, 12) == [200] * 3 + [429] * 9
        assert gateway.terminate() == 0
        used = {row["name"]: row for row in json.loads(keys(gateway, "usage", "--json"))}
        assert (used["one"]["requests"], used["one"]["refused"]) == (8, 32)
        assert (used["two"]["requests"], used["two"]["refused"]) == (3, 9)


def until_known(gateway: Served) -> None:
    """Until both workers know all keys that are there by now."""
    key, seen = keys(gateway, "create", "last").strip(), set[str]()

    def both(caller: Caller) -> bool:
        headers = {"authorization": f"Bearer {key}", "connection": "close"}
        answer = caller.call("GET", "/v1/models", headers=headers)
        if answer.status == 200:
            seen.add(answer.receipt.id.rpartition("-")[0])
        return len(seen) == 2

    with Caller(gateway.origin, gateway.policy()) as caller:
        until(lambda: both(caller))


def at_once(gateway: Served, engine: FakeEngine, count: int) -> list[int]:
    """The statuses of so many slow requests with a key that may have three of them at once: these first, then the others."""
    key = keys(gateway, "create", "two", "--concurrency", "3").strip()
    policy = gateway.policy()
    until_known(gateway)

    def chats() -> int:
        return sum(seen.method == "POST" for seen in engine.requests)

    engine.behaviour.delay = 3600
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        callers = [stack.enter_context(Caller(gateway.origin, policy)) for _ in range(count)]
        for caller in callers:
            caller.http.headers["authorization"] = f"Bearer {key}"
        try:
            asked, before = [], chats()
            for number in range(
                3
            ):  # one after the other: of two that are counted in one instant both may be refused
                asked.append(pool.submit(callers[number].chat, "x"))
                until(lambda: chats() == before + len(asked))
            refused = [caller.chat("x").status for caller in callers[3:]]
        finally:
            engine.behaviour.delay = 0
        return [each.result().status for each in asked] + refused


def test_keys_and_prompts_are_written_nowhere(tmp_path: Path, values: dict[str, Any]) -> None:
    """A marked key and a marked prompt, through success and every refusal, are in no file, log or metric."""
    port = free_port()
    with served(tmp_path / "gateway", access_refresh_seconds=0.2, metrics_port=port, **values) as gateway:
        assert "there is no usable API key yet" in gateway.log
        key = gateway.run("keys", "create", "one", "--requests-per-minute", "5").strip()
        private = Path(starts(tmp_path / "python")[0]["environment"]["HOME"])
        with Caller(gateway.origin, gateway.policy()) as caller:
            caller.http.headers["authorization"] = f"Bearer {key}"
            until(lambda: caller.get("/v1/models").status == 200)
            assert caller.chat(CANARY).outcome is Outcome.COMPLETE
            assert caller.chat(CANARY, stream=True).outcome is Outcome.COMPLETE
            assert caller.chat(CANARY, cache_salt=CANARY).status == 400
            caller.post("/v1/chat/completions", {"model": key})  # the stand-in fails, and prints what it got
            assert caller.chat(CANARY).status == 429
            assert caller.call("GET", "/v1/models", headers={"x-api-key": key}).status == 401
            [listed] = json.loads(keys(gateway, "list", "--json"))
            gateway.run("keys", "revoke", listed["id"])
            until(lambda: caller.get("/v1/models").status == 401)
            numbers = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).content
        assert gateway.terminate() == 0
        [row] = json.loads(keys(gateway, "usage", "--json"))
        assert row["completion_tokens"] == 10
    written = everything_written(tmp_path / "gateway", private) + numbers
    for secret in (CANARY, key, re.sub(r"^sk-enclave-", "", key)):
        assert secret.encode() not in written


def test_a_database_that_cannot_be_used(tmp_path: Path, values: dict[str, Any]) -> None:
    """One clear line and status 1, before the engine is started."""
    gateway = Served(
        tmp_path / "gateway", {**values, "access_database": f"sqlite:///{tmp_path}/no/such/access.db"}
    )
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert "access_database cannot be used (FileNotFoundError)" in gateway.log
    assert "Traceback" not in gateway.log
    assert not starts(tmp_path / "python")
