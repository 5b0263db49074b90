"""Two lines make a program that uses OpenAI's client a verified one, and nothing else about it changes."""

from __future__ import annotations

import asyncio
import difflib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.servers import FakeEngine, free_port, live_gateway

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "tests/client_sdk/switched.py"
CALL = {
    "index": 0,
    "id": "call-1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Rome"}'},
}
VERSIONS = {"3.x": Path(sys.executable), "2.x": ROOT / ".venv-openai2/bin/python"}


class Engine(FakeEngine):
    """The fake engine, which also calls tools, writes JSON, and fails or is slow where the prompt says so."""

    failures = 0

    async def _answer(
        self, request: web.Request, asked: dict[str, Any], prompt: str, **how: Any
    ) -> web.StreamResponse:
        if prompt == "slowly":
            await asyncio.sleep(2)
        self.failures = self.failures + 1 if prompt.startswith("fail") else 0
        if prompt == "fail always" or (prompt == "fail twice" and self.failures < 3):
            error = {"message": "not now", "type": "ServerError", "param": None, "code": 503}
            return web.json_response({"error": error}, status=503, headers={"Retry-After": "0.01"})
        if asked.get("tools"):
            return await self._call_tool(request, bool(asked.get("stream")))
        self.behaviour.text = '{"name":"Rome"}' if prompt == "json" else None
        return await super()._answer(request, asked, prompt, **how)

    async def _call_tool(self, request: web.Request, streamed: bool) -> web.StreamResponse:
        said = {"role": "assistant", "content": None, "tool_calls": [CALL]}
        choice = {"index": 0, "finish_reason": "tool_calls", "delta" if streamed else "message": said}
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        answer = {"id": "c-1", "object": kind, "created": 0, "model": "fake-model", "choices": [choice]}
        if not streamed:
            return web.json_response(
                {**answer, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n".encode())
        return response

    def listen_for_anybody(self) -> str:
        """The engine by itself, as an OpenAI client's base URL."""
        port = free_port()
        assert self._runner is not None
        self._worker.run(web.TCPSite(self._runner, "127.0.0.1", port).start())
        return f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def tools(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "engine.sock") as running:
        yield running


def switched(text: str, policy: Path) -> str:
    """The program with its import changed and a policy added."""
    text = text.replace(
        "from openai import AsyncOpenAI, OpenAI", "from client_sdk import AsyncOpenAI, OpenAI"
    )
    return text.replace("= {}\n", f"= {{'policy': {str(policy)!r}}}\n", 1)


#: Runs programs with the URL of each, one after the other in one process: to start one takes longer than what it asks.
RUN = """import json, sys
sys.path.insert(0, sys.argv[1])
for text, url in json.load(sys.stdin):
    sys.argv = ["program", url]
    exec(compile(text, "program", "exec"), {"__name__": "__main__"})
    print(flush=True)
    print("---", flush=True)
"""


def run(python: Path, *programs: tuple[str, str]) -> list[dict[str, Any]]:
    """What each program said that was given with its URL."""
    done = subprocess.run(
        [python, "-c", RUN, str(ROOT)],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert not done.returncode, done.stderr
    return [json.loads(said) for said in done.stdout.split("\n---\n")[:-1]]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_program_with_both_imports(tmp_path: Path, tools: Engine, version: str) -> None:
    """Against the engine with OpenAI's classes and against the gateway with ours: every call ends in the same way."""
    if not VERSIONS[version].exists():
        pytest.skip("the environment with openai 2.x is not here; `make setup` makes it")
    policy, text = tmp_path / "policy.toml", PROGRAM.read_text()
    changes = [
        line
        for line in difflib.ndiff(text.splitlines(), switched(text, policy).splitlines())
        if line[0] == "+"
    ]
    assert len(changes) == 2, changes
    with live_gateway(tmp_path, engine=tools) as gateway:
        policy.write_text(gateway.policy_text)
        plain, ours = run(
            VERSIONS[version],
            (text, tools.listen_for_anybody()),
            (switched(text, policy), gateway.url),
        )
    assert plain["version"].startswith(version[0])
    assert ours == plain
    assert plain["tools"] == plain["async tools"] == [["weather", '{"city":"Rome"}']]
    assert plain["structured"] == {"name": "Rome"}
    assert plain["retried"] == plain["async retried"] == "You said: fail twice"
    assert plain["not retried"][:2] == ["InternalServerError", 503]
    assert {plain[name][0] for name in ("too slow", "too slow for one call", "async too_slow")} == {
        "APITimeoutError"
    }
