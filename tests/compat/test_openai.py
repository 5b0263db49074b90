"""openai 2.x and 3.x, sync and async, against the gateway with real vLLM: what programs call, and what they get."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import MODEL, Chat
from tests.served import VLLM_SECONDS

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(4 * VLLM_SECONDS)]

ROOT = Path(__file__).resolve().parent.parent.parent
OLDER = ROOT / ".venv-openai2" / "bin" / "python"
PARIS = ["weather", {"city": "Paris"}]
WORKS: dict[str, Any] = {
    "models": [MODEL],
    "chat": [True, 12, "complete"],
    "chat_streamed": [True, 12],
    "helper_streamed": "stop",
    "tool_named": PARIS,
    "tool_streamed": PARIS,
    "tools_parallel": [True, True, True],
    "tool_results": [True, None],
    "structured": "Colour",
    "json_mode": "{",
    "logprobs": [3, 3, 3, 3],
    "choices": [3, True],
    "stop": ["stop", False],
    "completions": [2, 4, True],
    "responses": ["response.created", "response.completed", True, 16],
    "responses_structured": "Colour",
    "responses_tool": PARIS,
    "errors": [
        ["NotFoundError", 404, True],
        ["BadRequestError", 400, True],
        ["BadRequestError", 400, True],
        ["BadRequestError", 400, True],
        ["NotFoundError", 404, True],
        ["NotFoundError", 404, True],
        ["NotFoundError", 404, True],
    ],
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("major", ["2", "3"])
def test_what_programs_call(chat: Chat, major: str, kind: str) -> None:
    """Each case gives what the client's own types promise; the SDK has checked every receipt on the way."""
    python = Path(sys.executable) if major == "3" else OLDER
    if not python.exists():
        pytest.skip("the environment with openai 2.x is not here; `make setup` makes it")
    command = [str(python), "-W", "error", "-m", "tests.compat.openai_program"]
    done = subprocess.run(
        [*command, chat.url, str(chat.policy_file), MODEL, kind, *WORKS],
        capture_output=True,
        text=True,
        timeout=2 * VLLM_SECONDS,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert result.pop("version").startswith(f"{major}.")
    assert result == WORKS
