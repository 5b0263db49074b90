"""/metrics: a listener of its own, fixed labels, numbers that are right, and nothing that anybody said."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.processes import until
from tests.servers import FakeEngine, free_port

Numbers = Callable[[], dict[str, float]]


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def numbers(metrics_port: int) -> Numbers:
    """Every sample by its name and labels."""

    def read() -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
        samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    return read


def test_what_is_counted(
    start: Any, calling: Any, operator: Any, engine: FakeEngine, metrics_port: int, numbers: Numbers
) -> None:
    """Answers by route, status and outcome, tokens, times, refusals and gauges."""
    key = operator.create("one", "--requests-per-minute", "4")
    gateway = start(metrics_port=metrics_port)
    caller = calling(gateway, key)
    caller.chat("one two")
    caller.chat("one two three", stream=True)
    engine.behaviour.error_after = 2
    caller.chat("x", stream=True)
    caller.call("POST", "/v1/nothing")
    caller.post("/v1/completions", b"{")
    caller.get("/v1/models")
    calling(gateway, "wrong").get("/v1/models")
    last = 'enclave_refused_total{code="invalid_api_key"}'
    until(lambda: numbers().get(last) == 1)  # an answer is counted when it has left
    found = numbers()
    chat = 'route="/v1/chat/completions"'
    assert found[f'enclave_requests_total{{outcome="complete",{chat},status="200"}}'] == 2
    assert found[f'enclave_requests_total{{outcome="aborted",{chat},status="200"}}'] == 1
    assert found['enclave_requests_total{outcome="error",route="other",status="404"}'] == 1
    assert found['enclave_requests_total{outcome="error",route="/v1/models",status="429"}'] == 1
    assert found['enclave_refused_total{code="request_rate_limit"}'] == 1
    assert found['enclave_tokens_total{kind="prompt"}'] == 5
    assert found['enclave_tokens_total{kind="completion"}'] == 10
    assert found[f"enclave_request_seconds_count{{{chat}}}"] == 3
    assert found[f"enclave_first_byte_seconds_count{{{chat}}}"] == 3
    assert (found["enclave_ready"], found["enclave_in_flight"], found["enclave_queued"]) == (1, 0, 0)
    assert found["enclave_engine_restarts"] == 0
    assert 0 <= found["enclave_evidence_age_seconds"] < 600


def test_a_client_that_left(
    start: Any, calling: Any, operator: Any, engine: FakeEngine, metrics_port: int, numbers: Numbers
) -> None:
    """An answer that nobody read to its end has an outcome of its own."""
    engine.behaviour.delay, engine.behaviour.chunks = 0.05, 50
    key = operator.create()
    caller = calling(start(metrics_port=metrics_port), key)
    body = {"model": "fake-model", "messages": [{"content": "x"}], "stream": True}
    with caller.http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_raw())
    gone = 'enclave_requests_total{outcome="gone",route="/v1/chat/completions",status="none"}'
    until(lambda: numbers().get(gone) == 1)


def test_nothing_that_anybody_said(
    start: Any, calling: Any, operator: Any, metrics_port: int, numbers: Numbers
) -> None:
    """No prompt, path, key, key id, name or tenant is in it; labels are few and known."""
    key = operator.create("NameCanary", "--tenant", "TenantCanary")
    gateway = start(metrics_port=metrics_port)
    caller = calling(gateway, key)
    caller.chat("PromptCanary")
    caller.get("/v1/PathCanary?QueryCanary")
    calling(gateway, "sk-enclave-WrongCanary").get("/v1/models")
    until(lambda: numbers().get('enclave_refused_total{code="invalid_api_key"}') == 1)
    text = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
    assert "Canary" not in text
    assert key not in text
    assert "key_" not in text
    labels = set(re.findall(r'[{,](\w+)="', text))
    assert labels == {"route", "status", "outcome", "code", "kind", "le"}


def test_no_port_no_listener(start: Any) -> None:
    """Without the setting there is no /metrics, on the gateway's own port neither."""
    gateway = start()
    assert httpx.get(f"{gateway.origin}/metrics", verify=False, trust_env=False).status_code == 404  # noqa: S501
