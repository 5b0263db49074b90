"""langchain-openai on the verifying HTTP client, through LangChain's own integration tests of chat models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from client_sdk import AsyncAttestedClient, AttestedClient
from tests.compat.conftest import MODEL, Chat
from tests.served import VLLM_SECONDS

pytest.importorskip("langchain_openai", reason="`make test-compat` has langchain-openai and langchain-tests")

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(2 * VLLM_SECONDS),
    pytest.mark.filterwarnings("default"),  # LangChain's own
]


class TestChatOpenAI(ChatModelIntegrationTests):  # type: ignore[misc]  # it is in an environment of its own
    """Nothing is changed but the two HTTP clients, which verify the gateway and every receipt."""

    @pytest.fixture(autouse=True)
    def _gateway(self, chat: Chat) -> Iterator[None]:
        self._chat = chat
        with AttestedClient(chat.policy_file, timeout=180) as client:
            self._client = client
            yield

    @property
    def chat_model_class(self) -> Any:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "base_url": self._chat.url,
            "api_key": "unused",
            "http_client": self._client,
            "http_async_client": AsyncAttestedClient(self._chat.policy_file, timeout=180),
            "temperature": 0,
            "max_tokens": 256,
            "frequency_penalty": 0.5,  # else it fills JSON with blanks
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "json_schema"}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # a gateway serves one model, whose digest is in its statement

    @pytest.mark.xfail(
        reason="a model of 135M parameters answers in words when it may choose; vLLM forces no call here"
    )
    def test_agent_loop(self, model: BaseChatModel) -> None:
        super().test_agent_loop(model)

    @pytest.mark.xfail(
        reason="in JSON mode without a schema, a model of 135M parameters comes to no end within its tokens"
    )
    def test_json_mode(self, model: BaseChatModel) -> None:
        super().test_json_mode(model)
