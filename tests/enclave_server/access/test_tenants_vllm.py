"""Tenants in front of real vLLM: the salt does what it is for, and the hidden count of tokens is vLLM's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.receipt import Outcome
from tests.caller import Answer, Caller
from tests.processes import until
from tests.served import VLLM_SECONDS, served, vllm_settings

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(5 * VLLM_SECONDS)]


LONG = "word " * 80
# Every route whose requests fill the cache of prefixes, with a model that generates.
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2},
    "/v1/completions": {"prompt": LONG, "max_tokens": 2},
    "/v1/responses": {"input": LONG, "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2},
    "/v1/generative_scoring": {"query": LONG, "items": ["one"], "label_token_ids": [5, 6]},
}


def test_tenants_do_not_share_a_cache(tmp_path: Path) -> None:
    """A long beginning is found in the cache by its own tenant, and by no other; streams are counted and look the same."""
    with served(tmp_path, seconds=3 * VLLM_SECONDS, access="keys", **vllm_settings()) as gateway:
        keys = {
            name: gateway.run("keys", "create", name, "--tenant", tenant).strip()
            for name, tenant in (("one", "acme"), ("two", "acme"), ("three", "other"))
        }
        with Caller(gateway.origin, gateway.policy()) as caller:
            caller.http.timeout = httpx.Timeout(VLLM_SECONDS)  # for a first answer, on a busy machine
            caller.http.headers["authorization"] = f"Bearer {keys['three']}"  # it was made last
            until(lambda: caller.get("/v1/models").status == 200)
            for number, (path, body) in enumerate(GENERATING.items()):
                text = json.dumps({"model": "tiny", **body}).replace(LONG, f"{number} {LONG}")

                def found(name: str, path: str = path, text: str = text) -> float:
                    before = gateway.engine_count("vllm:prefix_cache_hits_total")
                    caller.http.headers["authorization"] = f"Bearer {keys[name]}"
                    answer = caller.post(path, text.encode(), {"content-type": "application/json"})
                    assert answer.outcome is Outcome.COMPLETE, (path, answer.body)
                    return gateway.engine_count("vllm:prefix_cache_hits_total") - before

                assert [found(name) > 0 for name in ("one", "three", "two")] == [False, False, True], path

            def ask(name: str, **more: object) -> Answer:
                caller.http.headers["authorization"] = f"Bearer {keys[name]}"
                return caller.chat("word " * 80, max_tokens=4, temperature=0, **more)

            def cached(answer: Answer) -> int:
                details = answer.json["usage"]["prompt_tokens_details"]
                return int((details or {}).get("cached_tokens") or 0)

            assert cached(ask("one")) == 0
            assert cached(ask("three")) == 0
            assert cached(ask("two")) > 0
            assert cached(ask("three")) > 0

            hidden, shown = (
                ask("one", stream=True),
                ask("one", stream=True, stream_options={"include_usage": True}),
            )
            assert hidden.outcome is shown.outcome is Outcome.COMPLETE
            assert hidden.receipt.usage == shown.receipt.usage
            assert hidden.receipt.usage is not None
            assert b'"usage"' not in hidden.body
            assert shown.events[-2][
                "usage"
            ]  # in an event of its own; how many others there are, the load decides
            assert words(shown.events[:-2]) == words(hidden.events[:-1])


def words(events: list[Any]) -> str:
    """What a stream says."""
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
