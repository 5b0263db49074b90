"""Run with the engine's Python: print, as JSON, every route that vLLM can register, and every field of its requests with some defaults."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from typing import Any

os.environ |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}

REQUESTS = {
    "/v1/chat/completions": ("openai.chat_completion", "ChatCompletionRequest"),
    "/v1/completions": ("openai.completion", "CompletionRequest"),
    "/v1/responses": ("openai.responses", "ResponsesRequest"),
    "/v1/messages": ("anthropic", "AnthropicMessagesRequest"),
    "/v1/messages/count_tokens": ("anthropic", "AnthropicCountTokensRequest"),
    "/v1/embeddings": ("pooling.embed", "EmbeddingCompletionRequest EmbeddingChatRequest"),
    "/v1/pooling": ("pooling.pooling", "PoolingCompletionRequest PoolingChatRequest IOProcessorRequest"),
    "/v1/classify": ("pooling.classify", "ClassificationCompletionRequest ClassificationChatRequest"),
    "/v1/score": (
        "pooling.scoring",
        "ScoreDataRequest ScoreTextRequest ScoreQueriesDocumentsRequest ScoreQueriesItemsRequest",
    ),
    "/v1/rerank": ("pooling.scoring", "RerankRequest"),
    "/v1/generative_scoring": ("generate.generative_scoring", "GenerativeScoringRequest"),
    "/v1/tokenize": ("serve.tokenize", "TokenizeCompletionRequest TokenizeChatRequest"),
    "/v1/detokenize": ("serve.tokenize", "DetokenizeRequest"),
    "/v1/audio/transcriptions": ("speech_to_text.transcription", "TranscriptionRequest"),
    "/v1/audio/translations": ("speech_to_text.translation", "TranslationRequest"),
}


def fields() -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for path, (place, classes) in REQUESTS.items():
        module: Any = importlib.import_module(f"vllm.entrypoints.{place}.{_where(path)}")
        for name in classes.split():
            members = getattr(module, name).model_fields.items()
            found.setdefault(path, set()).update(member.alias or key for key, member in members)
    return {path: sorted(names) for path, names in found.items()}


def _where(path: str) -> str:
    return "serving" if path == "/v1/generative_scoring" else "protocol"


def defaults() -> dict[str, Any]:
    """What requests that sample have where they say nothing."""
    found = {}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        place, name = REQUESTS[path]
        module: Any = importlib.import_module(f"vllm.entrypoints.{place}.protocol")
        request = getattr(module, name)
        named = {key: member.default for key, member in request.model_fields.items() if key in {"n", "seed"}}
        found[path] = {**request.__private_attributes__["_DEFAULT_SAMPLING_PARAMS"].default, **named}
    return found


def routes() -> list[str]:
    """Of every router in vLLM's packages, whether this build would register it or not."""
    import vllm.entrypoints as root

    found: set[str] = set()
    for module in pkgutil.walk_packages(root.__path__, "vllm.entrypoints."):
        if module.name.endswith("api_router") or "instrumentator" in module.name:
            try:
                router = getattr(importlib.import_module(module.name), "router", None)
            except ImportError:  # it needs a library that is not there
                continue
            found.update(route.path for route in getattr(router, "routes", ()))
    return sorted(found)


if __name__ == "__main__":
    sys.stdout.write(
        "\n" + json.dumps({"fields": fields(), "routes": routes(), "defaults": defaults()}) + "\n"
    )
