"""What the gateway reads of a request and an answer: few fields, strictly, and nothing it would have to write again."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.receipt import Usage
from enclave_server.errors import ApiError
from enclave_server.peek import DEFAULTS, MAX_DEPTH, read_object, sampling_of, usage_of


def test_sampling_is_what_was_set() -> None:
    """Parameters that the request sets, over defaults; null means not set; a prompt never is among them."""
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
    assert sampling_of(read_object(json.dumps(request).encode())) == {
        "temperature": 0,
        "seed": 2**53,
        "logit_bias": {"5": -1.5},
    }


def test_sampling_defaults_are_named() -> None:
    """Where the engine samples, what a request leaves open stands in the receipt too."""
    found = sampling_of({"temperature": 0, "top_p": None, "max_tokens": 3}, DEFAULTS)
    assert found == {**DEFAULTS, "temperature": 0, "max_tokens": 3}
    assert (found["top_p"], found["seed"]) == (1, None)


def test_error_names_the_field() -> None:
    """A wrong type is reported with the field's name, when that is one of ours."""
    with pytest.raises(ApiError) as caught:
        sampling_of({"temperature": "hot"})
    assert caught.value.param == "temperature"


@given(st.binary(max_size=200))
def test_any_request(body: bytes) -> None:
    """Any bytes give parameters or a clear 400."""
    with suppress(ApiError):
        assert isinstance(sampling_of(read_object(body)), dict)


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
        (b'{"usage":{"type":"duration","seconds":3}}', None),
        (
            b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}',
            Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=2),
        ),
        (
            b'{"usage":{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":0}}}',
            Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=0),
        ),
        (
            b'{"usage":{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":16}}',
            Usage(prompt_tokens=19, completion_tokens=4, cached_tokens=16),
        ),
        (
            b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":null}}',
            Usage(prompt_tokens=3, completion_tokens=0),
        ),
        (b'{"usage":{"input_tokens":3,"output_tokens":4}}', Usage(prompt_tokens=3, completion_tokens=4)),
        (b'{"response":{"usage":{"input_tokens":3}}}', Usage(prompt_tokens=3, completion_tokens=0)),
    ],
)
def test_usage(body: bytes, usage: Usage | None) -> None:
    """Counts are taken as the engine wrote them, or not at all."""
    assert usage_of(body) == usage


def nested(levels: int) -> bytes:
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"tools":[{"function":{"name":"a","name":"b"}}]}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":1}'.encode("utf-32-be"),
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\uDC00\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":18446744073709551616}',
        b'{"a":-9223372036854775809}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":1}x',
        b'{"a":1}{"a":2}',
        b'{"a":1}\0',
        b'{"a":"\0"}',
        b'{"a":01}',
        b'{"a":1,}',
        b"{'a':1}",
        b'{"a":1/**/}',
        b"[]",
        b"null",
        b"",
        nested(MAX_DEPTH + 1),
        nested(100_000),
    ],
    ids=lambda body: repr(body[:24]),
)
def test_two_readings(body: bytes) -> None:
    """What two readers could take for two requests, or one of them not at all, is refused."""
    with pytest.raises(ApiError) as caught:
        read_object(body)
    assert caught.value.status == 400


def test_too_deep() -> None:
    """A body with more levels than it may have is told so."""
    with pytest.raises(ApiError, match="too_deep"):
        read_object(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "body",
    [
        b' {"a" : "\\ud83d\\ude00 \\\\ud800 \x7f" }\n',
        b'{"a":18446744073709551615,"b":-9223372036854775808,"c":1E5,"d":-0,"e":0.1e-400}',
        nested(MAX_DEPTH),
        b'{"a":"' + b"[{" * 1000 + b'"}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_one_reading(body: bytes) -> None:
    """Unusual is not ambiguous: what every reader reads alike passes."""
    assert read_object(body) == json.loads(body) == msgspec.json.decode(body)


_TEXT = st.text(max_size=5) | st.sampled_from(["model", "\ud800", "\U0001f600", "\x7f", "\ufeff", "\u2028"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT | st.integers(2**62, 2**66),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(_VALUES, st.booleans(), st.data())
def test_accepted_is_read_alike(value: object, ascii_only: bool, data: st.DataObject) -> None:
    """Whatever is accepted, vLLM's parser and another one read as it was read here; torn and spliced texts included."""
    text = json.dumps({"a": value}, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    at = data.draw(st.integers(0, len(text)))
    for body in (text, text[:at] + data.draw(st.binary(max_size=4)) + text[at:], text[:at] + text[at + 1 :]):
        with suppress(ApiError):
            read = read_object(body)
            assert read == json.loads(body) == msgspec.json.decode(body)
