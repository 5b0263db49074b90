"""What the gateway reads of a request and an answer: few fields, strictly, and nothing it would have to write again."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.receipt import Usage
from enclave_server.errors import ApiError
from enclave_server.peek import sampling_of, usage_of


def test_sampling_is_what_was_set() -> None:
    """Only parameters that the request sets are listed; null means not set; a prompt never is among them."""
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": "secret"}],
        "stream": True,
        "temperature": 0,
        "top_p": None,
        "seed": 2**53,
        "logit_bias": {"5": -1.5},
        "unknown": {"deep": [1]},
    }
    assert sampling_of(json.dumps(request).encode()) == {
        "temperature": 0,
        "seed": 2**53,
        "logit_bias": {"5": -1.5},
    }


def test_error_names_the_field() -> None:
    """A wrong type is reported with the field's name, when that is one of ours."""
    with pytest.raises(ApiError) as caught:
        sampling_of(b'{"temperature": "hot"}')
    assert caught.value.param == "temperature"


@given(st.binary(max_size=200))
def test_any_request(body: bytes) -> None:
    """Any bytes give parameters or a clear 400."""
    with suppress(ApiError):
        assert isinstance(sampling_of(body), dict)


@given(st.binary(max_size=200))
def test_any_answer(body: bytes) -> None:
    """Any bytes give counts or None."""
    usage_of(body)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4}}', Usage(prompt_tokens=3, completion_tokens=4)),
        (b'{"usage":{"prompt_tokens":3}}', Usage(prompt_tokens=3, completion_tokens=0)),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b'{"usage":{"prompt_tokens":"3"}}', None),
    ],
)
def test_usage(body: bytes, usage: Usage | None) -> None:
    """Counts are taken as the engine wrote them, or not at all."""
    assert usage_of(body) == usage
