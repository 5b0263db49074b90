"""The shape of an error: what the clients of each API look for."""

from __future__ import annotations

import json

import pytest

from attestation.receipt import Outcome
from enclave_server.errors import ApiError
from tests.caller import Caller
from tests.servers import FakeEngine


def test_below_messages(caller: Caller) -> None:
    """Below /v1/messages an error has Anthropic's type, and this gateway's code and parameter beside it."""
    answer = caller.post("/v1/messages", {"model": "fake-model", "messages": [], "no_such_field": 1})
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert answer.json["type"] == "error"
    error = answer.json["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_field")
    assert error["param"] == "no_such_field"


def test_elsewhere(caller: Caller) -> None:
    """Everywhere else it has OpenAI's shape, with no type outside."""
    answer = caller.call("GET", "/v1/message")
    assert (answer.status, set(answer.json)) == (404, {"error"})


def test_engine_away(caller: Caller, engine: FakeEngine) -> None:
    """What Anthropic's clients may try again is told in their words."""
    engine.down()
    answer = caller.post("/v1/messages", {"model": "fake-model", "messages": [], "max_tokens": 1})
    assert answer.json["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 429, 500, 502, 503, 504])
def test_every_status(status: int) -> None:
    """Each status has a type that Anthropic's clients know, whole and as an event of a stream."""
    event = ApiError(status, "some_code", "Words.").to_event(anthropic=True)
    name, data = event.rstrip(b"\n").split(b"\n")
    assert name == b"event: error"
    error = json.loads(data.removeprefix(b"data: "))["error"]
    assert error["type"] in {
        *("invalid_request_error", "authentication_error", "not_found_error", "rate_limit_error"),
        *("timeout_error", "api_error", "overloaded_error"),
    }
