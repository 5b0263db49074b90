"""Tenants in front of real vLLM: the salt does what it is for, and the hidden count of tokens is vLLM's own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from attestation.receipt import Outcome
from tests.caller import Answer, Caller
from tests.served import VLLM_SECONDS, served, vllm_settings

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(600)]


def test_tenants_do_not_share_a_cache(tmp_path: Path) -> None:
    """A long beginning is found in the cache by its own tenant, and by no other; streams are counted and look the same."""
    with served(tmp_path, seconds=VLLM_SECONDS, access="keys", **vllm_settings()) as gateway:
        keys = {
            name: gateway.run("keys", "create", name, "--tenant", tenant).strip()
            for name, tenant in (("one", "acme"), ("two", "acme"), ("three", "other"))
        }
        time.sleep(3)
        with Caller(gateway.origin, gateway.policy()) as caller:

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
            assert len(shown.events) == len(hidden.events) + 1
