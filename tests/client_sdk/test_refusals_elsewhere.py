"""Refusals inside others' libraries, as docs/recipes.md has them use our clients: one question each, and the reason.

A server counts what every library asks: evidence once, and a prompt never again after a refusal.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client_sdk.kept import EVIDENCE_PATH
from tests.client_sdk.conftest import Recorder
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway
from tests.test_recipes import PYTHON, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
WAYS = 8


def altered(app: Any) -> Any:
    """Somebody changes a byte of every answer, late in it where it is a stream."""

    async def changed(scope: Any, receive: Any, send: Any) -> None:
        pieces = 0

        async def spoil(message: Any) -> None:
            nonlocal pieces
            if message["type"] == "http.response.body" and message.get("body"):
                pieces += 1
                if pieces == 3 or not message.get("more_body"):
                    body = message["body"]
                    message = {**message, "body": body[:-1] + bytes([body[-1] ^ 1])}
            await send(message)

        evidence = scope.get("path") == EVIDENCE_PATH
        await app(scope, receive, send if evidence else spoil)

    return changed


@contextmanager
def altering(folder: Path) -> Iterator[tuple[LiveGateway, Recorder]]:
    """The real gateway behind that somebody, who counts."""
    recorder = Recorder()
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, wrap=lambda app: recorder.wrap(altered(app))) as gateway,
    ):
        engine.behaviour.delay = 0.03
        yield gateway, recorder


def elsewhere(folder: Path, *arguments: str) -> dict[str, list[str]]:
    """How each library ends."""
    if not PYTHON.exists():
        pytest.skip("the environment with these libraries is not here; `make setup-recipes` makes it")
    done = subprocess.run(
        [PYTHON, ROOT / "tests/client_sdk/elsewhere.py", *arguments],
        env={
            **os.environ,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert not done.returncode, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == WAYS
    return found


def test_a_refused_enclave_is_asked_for_evidence_once(tmp_path: Path) -> None:
    """The refusal is what the caller of each library gets, and no prompt was sent."""
    with altering(tmp_path) as (gateway, recorder):
        found = elsewhere(tmp_path, gateway.url, "[tdx]\n", "WHOLE")
    assert {tuple(said) for said in found.values()} == {("plain", "tdx.root")}, found
    assert recorder.paths == [EVIDENCE_PATH] * WAYS


@pytest.mark.parametrize("kind", ["WHOLE", "STREAM"])
def test_an_altered_answer_is_not_asked_for_again(tmp_path: Path, kind: str) -> None:
    """Neither at once nor in the middle of a stream: each library sent its prompt one time."""
    with altering(tmp_path) as (gateway, recorder):
        found = elsewhere(tmp_path, gateway.url, gateway.policy_text, kind)
    assert {raised for raised, _ in found.values()} == {"plain"}, found
    assert {check for _, check in found.values()} <= {"sealed.open", "sealed.truncated"}, found
    assert recorder.attestations() == WAYS
    assert len(recorder.paths) == 2 * WAYS


def test_the_reason_is_behind_a_failed_connection(tmp_path: Path) -> None:
    """Nobody is there: what a library makes of it has our error as its cause, which ours and the Agents SDK raise themselves."""
    found = elsewhere(tmp_path, f"https://127.0.0.1:{free_port()}/v1", "[tdx]\n", "WHOLE")
    assert {check for _, check in found.values()} == {"evidence.fetch"}, found
    assert {name for name, (raised, _) in found.items() if raised == "plain"} == {"ours", "agents_sdk"}, found
