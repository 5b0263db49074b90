"""docs/recipes.md does what it says: every block runs, in an environment with the libraries it is about."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.servers import MODEL, FakeEngine, LiveGateway, live_gateway

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv-recipes/bin/python"
PAGE = (ROOT / "docs/recipes.md").read_text()
RECIPES = dict(re.findall(r"<!-- recipe: (\w+) -->\n```python\n(.*?)```", PAGE, flags=re.DOTALL))
SAID = "You said: Hello!"
SAYS = {
    "trust": [f"{MODEL} True", SAID],
    "refused": ["tdx.root"],
    "reason": ["tdx.root"],
    "httpx": [SAID, "complete"],
    "httpx2": ["data: [DONE]"],
    "anthropic": ["Good day."],
    "langchain": [SAID, "You said: Hello again!"],
    "llamaindex": [SAID],
    "litellm": [SAID],
    "agents": [SAID],
}
pytestmark = pytest.mark.slow


class Engine(FakeEngine):
    """The fake engine, which answers Anthropic's messages too, and prompts in parts."""

    async def _other(self, request: web.Request) -> web.StreamResponse:
        await super()._other(request)
        said = [{"type": "text", "text": "Good day."}]
        usage = {"input_tokens": 3, "output_tokens": 2}
        message = {"id": "m-1", "type": "message", "role": "assistant", "model": MODEL, "content": said}
        return web.json_response({**message, "stop_reason": "end_turn", "usage": usage})


@dataclass
class Kitchen:
    """Where recipes run."""

    gateway: LiveGateway
    engine: Engine
    folder: Path

    def cook(self, code: str) -> list[str]:
        """What a recipe prints; anything on its standard error fails it."""
        code = code.replace("https://127.0.0.1:8443", self.gateway.origin).replace("a-model", MODEL)
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
        done = subprocess.run(
            [PYTHON, "-c", program],
            cwd=self.folder,
            env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert not done.returncode, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Kitchen]:
    if not PYTHON.exists():
        pytest.skip("the environment with these libraries is not here; `make setup-recipes` makes it")
    with Engine(tmp_path / "engine.sock") as engine, live_gateway(tmp_path, engine=engine) as gateway:
        (tmp_path / "policy.toml").write_text(gateway.policy_text)
        yield Kitchen(gateway, engine, tmp_path)


def test_every_block_of_the_page_is_a_recipe() -> None:
    """No code stands there that nobody runs."""
    assert PAGE.count("```python") == len(RECIPES) == len(SAYS)
    assert RECIPES.keys() == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_a_recipe(kitchen: Kitchen, name: str) -> None:
    """It prints what it should, and the prompt reached the engine through the gateway, once for each question."""
    printed = kitchen.cook(RECIPES[name])
    assert [line for line in printed if line in SAYS[name]] == SAYS[name], printed
    asked = [json.loads(seen.body) for seen in kitchen.engine.requests if seen.method == "POST"]
    questions: list[Any] = re.findall(r"Hello", RECIPES[name])
    assert len(asked) == (0 if SAYS[name] == ["tdx.root"] else len(questions))
    if name == "trust":
        assert (kitchen.folder / "answer.json").stat().st_size
