"""The table of routes against real vLLM: each route answers, each of its fields is known, nothing else can be reached."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.receipt import Outcome
from enclave_server.peek import DEFAULTS
from enclave_server.routes import IGNORED, REFUSED, ROUTES
from tests.caller import Caller
from tests.served import VLLM_SECONDS, Served, engine_python
from tools.route_table import NOT_CARRIED

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3 * VLLM_SECONDS)]

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
# What of vLLM's is for whoever runs it.
ADMINISTRATION = """/health /load /version /server_info /sleep /wake_up /is_sleeping /pause /resume /is_paused /collective_rpc
    /start_profile /stop_profile /reset_prefix_cache /reset_mm_cache /reset_encoder_cache /release_kv_cache_memory
    /kv_event_sources /scale_elastic_ep /is_scaling_elastic_ep /fault_tolerance/apply /fault_tolerance/status
    /abort_requests /inference/v1/abort_requests /get_world_size /init_weight_transfer_engine
    /shutdown_weight_transfer_engine /start_weight_update /start_draft_weight_update /update_weights
    /finish_weight_update /update_weight_version /weight_checker /weight_info"""
# Routes that vLLM adds by hand or by flag.
FIXED = [
    "/invocations",
    "/ping",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/tokenizer_info",
    "/docs",
]


@pytest.fixture(scope="session")
def surface() -> dict[str, Any]:
    """What the installed vLLM has."""
    command = [engine_python(), Path(__file__).parent / "vllm_surface.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=VLLM_SECONDS)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture
def caller(vllm_gateway: Served) -> Iterator[Caller]:
    with Caller(vllm_gateway.origin, vllm_gateway.policy()) as verified:
        yield verified


def test_every_field_is_decided(surface: dict[str, Any]) -> None:
    """Each field of vLLM's own classes is taken or refused by name, and none is taken that nobody knows."""
    for path, known in surface["fields"].items():
        taken = ROUTES[path.encode()].fields
        assert set(known) - taken - REFUSED.keys() == set(), path
        assert taken - set(known) - IGNORED - {"cache_salt"} == set(), path


def test_sampling_defaults(surface: dict[str, Any]) -> None:
    """What a receipt says of parameters that a request left open is what vLLM does with them."""
    for path, known in surface["defaults"].items():
        assert known.items() <= DEFAULTS.items(), path


def test_every_route_is_decided(surface: dict[str, Any]) -> None:
    """Each route of vLLM's is carried, or named with a reason in docs/routes.md, or administration: a new one fails here."""
    carried = {route.engine for route in ROUTES.values()} | {path.decode() for path in ROUTES}
    decided = {*ADMINISTRATION.split(), *(path for paths in NOT_CARRIED.values() for path in paths)}
    assert {*surface["routes"]} - carried - decided == set()
    assert decided & carried == set()
    assert decided - {*surface["routes"]} == set()


def test_one_model(caller: Caller) -> None:
    """What vLLM lists can be asked for by its name."""
    [listed] = caller.get("/v1/models").json["data"]
    answer = caller.get(f"/v1/models/{listed['id']}")
    assert (answer.status, answer.outcome) == (200, Outcome.COMPLETE)
    assert answer.json.keys() == listed.keys()


def test_nothing_else_is_reachable(caller: Caller, surface: dict[str, Any]) -> None:
    """Every other route that vLLM has is 404, as it is and below /v1; below /v1 with a receipt."""
    assert {"/collective_rpc", "/scale_elastic_ep", "/inference/v1/generate", "/sleep"} <= {
        *surface["routes"]
    }
    for path in {*surface["routes"], *FIXED, "/metrics"} - {path.decode() for path in ROUTES}:
        for method in ("GET", "POST"):
            if not path.startswith("/v1/"):
                assert caller.http.request(method, path).status_code == 404, path
            below = path if path.startswith("/v1/") else f"/v1{path}"
            if below.encode() not in ROUTES:
                answer = caller.call(method, below)
                assert (answer.status, answer.error) == (404, "not_found"), path


def test_tools(caller: Caller) -> None:
    """Tools reach vLLM, which refuses to call one in its own words: this gateway was started without a tool parser."""
    choice = {"type": "function", "function": {"name": "f"}}
    answer = caller.chat("hi", tools=[TOOL], tool_choice=choice, max_tokens=32)
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert "--tool-call-parser" in answer.json["error"]["message"]


def test_structured_output(caller: Caller) -> None:
    """An answer after a JSON Schema."""
    shape = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
    answer = caller.chat("hi", response_format=shape, max_tokens=64, temperature=0)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.json["choices"][0]["message"]["content"].lstrip().startswith("{")


def test_choices_with_logprobs(caller: Caller) -> None:
    """Several choices, each with the probabilities of its tokens."""
    answer = caller.chat("hi", n=3, logprobs=True, top_logprobs=2, max_tokens=4, seed=1)
    assert [len(choice["logprobs"]["content"][0]["top_logprobs"]) for choice in answer.json["choices"]] == [
        2
    ] * 3
    assert answer.receipt.sampling == {**DEFAULTS, "n": 3, "max_tokens": 4, "seed": 1}


def test_responses(caller: Caller) -> None:
    """The responses route, plain and streamed, stores nothing; its tokens are counted in the receipt."""
    asked = {"model": "tiny", "input": "hi", "max_output_tokens": 8, "store": False, "temperature": 0}
    answer = caller.post("/v1/responses", asked)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.usage is not None
    assert answer.receipt.usage.completion_tokens == answer.json["usage"]["output_tokens"]
    cached = answer.json["usage"]["input_tokens_details"]["cached_tokens"]
    assert answer.receipt.usage.cached_tokens == cached
    assert caller.call("GET", f"/v1/responses/{answer.json['id']}").status == 404
    streamed = caller.post("/v1/responses", {**asked, "stream": True})
    assert streamed.outcome is Outcome.COMPLETE
    assert streamed.receipt.usage == answer.receipt.usage


def test_messages(caller: Caller) -> None:
    """Anthropic's messages, plain, streamed and counted."""
    asked = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
    answer = caller.post("/v1/messages", asked)
    assert answer.outcome is Outcome.COMPLETE
    assert answer.receipt.usage is not None
    used = answer.json["usage"]
    assert answer.receipt.usage.cached_tokens == used["cache_read_input_tokens"]
    assert answer.receipt.usage.prompt_tokens == used["input_tokens"] + used["cache_read_input_tokens"]
    streamed = caller.post("/v1/messages", {**asked, "stream": True})
    assert streamed.outcome is Outcome.COMPLETE
    assert streamed.receipt.usage is not None
    counted = caller.post("/v1/messages/count_tokens", {name: asked[name] for name in ("model", "messages")})
    assert counted.json["input_tokens"] == answer.receipt.usage.prompt_tokens
    assert streamed.receipt.usage.prompt_tokens == answer.receipt.usage.prompt_tokens


def test_tokens(caller: Caller) -> None:
    """Text to tokens and back."""
    tokens = caller.post("/v1/tokenize", {"model": "tiny", "prompt": "once", "add_special_tokens": False})
    back = caller.post("/v1/detokenize", {"model": "tiny", "tokens": tokens.json["tokens"]})
    assert (tokens.outcome, back.outcome) == (Outcome.COMPLETE, Outcome.COMPLETE)
    assert back.json["prompt"] == "once"


def test_generative_scoring(caller: Caller) -> None:
    """How likely a chat model finds each of some tokens next, for several texts in one request."""
    asked = {"model": "tiny", "query": "is it ", "items": ["good", "bad"], "label_token_ids": [5, 6]}
    answer = caller.post("/v1/generative_scoring", asked)
    assert answer.outcome is Outcome.COMPLETE
    assert [0 < item["score"] < 1 for item in answer.json["data"]] == [True, True]
    assert answer.receipt.usage is not None
    assert answer.receipt.usage.prompt_tokens == answer.json["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "path", ["embeddings", "pooling", "classify", "score", "rerank", "audio/transcriptions"]
)
def test_what_the_model_cannot(caller: Caller, path: str) -> None:
    """A route that this model does not have is an error in OpenAI's shape, signed."""
    body: Any = {"model": "tiny", "input": "x"}
    headers = {}
    if path.startswith("audio"):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        body = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--x--\r\n'
    elif path in {"score", "rerank"}:
        body = {"model": "tiny", "query": "x", "documents": ["y"]}
        body = body if path == "rerank" else {"model": "tiny", "text_1": "x", "text_2": "y"}
    answer = caller.post(f"/v1/{path}", body, headers)
    assert (answer.status, answer.outcome) == (404, Outcome.ERROR)
    assert answer.error == "not_found"
