"""The gateway in front of real vLLM with a small real model, which can be asked for tool calls. One start for all files here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.caller import Caller
from tests.served import VLLM_SECONDS, chat_model, model_settings, served, vllm_settings

MODEL = "smollm2-135m-instruct"
# The template of this model knows no tools: what makes its calls well-formed is vLLM's grammar, for every argument.
FLAGS = ["--enable-auto-tool-choice", "--tool-call-parser=hermes", "--tool-strict-level=parameter"]


@dataclass(frozen=True)
class Chat:
    """Where the gateway is, and what its clients accept."""

    url: str
    policy: str
    policy_file: Path

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/v1")


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    """A gateway with the quick-start model, and tools switched on."""
    folder = tmp_path_factory.mktemp("chat")
    settings = vllm_settings() | model_settings(chat_model(), MODEL)
    settings |= {"engine_max_model_len": 4096, "engine_kv_cache_memory": "512M", "engine_flags": FLAGS}
    with served(folder, seconds=VLLM_SECONDS, **settings) as gateway:
        policy = gateway.policy()
        file = folder / "policy.toml"
        file.write_text(policy)
        yield Chat(f"{gateway.origin}/v1", policy, file)


@pytest.fixture
def caller(chat: Chat) -> Iterator[Caller]:
    """A client of raw bytes that has verified the gateway: an answer without a right receipt is an exception."""
    with Caller(chat.origin, chat.policy) as verified:
        yield verified
