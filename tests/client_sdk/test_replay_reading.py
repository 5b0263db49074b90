"""What can be replayed at all, and what is read of an answer: a reason or a reading for any bytes."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestation.bundle import SavedExchange
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.receipt import Outcome
from client_sdk.replay.answer import Choice, digest_of, read_choices, read_prefill
from client_sdk.replay.comparing import check_same, read_recorded, rerun
from client_sdk.replay.terms import media_in
from tests.attestation.test_receipt import NONCE, RECEIPT
from tests.client_sdk.replayed import FLOAT32, GREEDY, OUTPUT, PROMPT, STATEMENT, plain, recorded
from tests.client_sdk.test_replay import Model


def saved(**changes: Any) -> SavedExchange:
    values = {
        "receipt": "",
        "nonce": NONCE,
        "request": b'{"model":"m"}',
        "response": plain(OUTPUT),
        **changes,
    }
    return SavedExchange(**values)


GOOD = replace(RECEIPT, sampling=GREEDY, tokens=digest_of(read_choices(plain(OUTPUT)), NONCE))


@pytest.mark.parametrize(
    ("receipt", "exchange", "why"),
    [
        (replace(GOOD, outcome=Outcome.ABORTED), saved(), "the outcome is aborted"),
        (replace(GOOD, request=replace(RECEIPT.request, path="/v1/responses")), saved(), "/v1/responses"),
        (GOOD, saved(response=None), "digests only"),
        (replace(GOOD, sampling={"temperature": 1, "seed": None}), saved(), "without a seed"),
        (replace(GOOD, sampling={}), saved(), "without a seed"),
        (replace(GOOD, sampling={**GREEDY, "use_beam_search": True}), saved(), "beam"),
        (
            GOOD,
            saved(request=b'{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]}'),
            "media",
        ),
    ],
)
def test_not_replayable(receipt: Any, exchange: SavedExchange, why: str) -> None:
    """Each reason is told."""
    with pytest.raises(UnavailableError, match=why) as caught:
        read_recorded(receipt, exchange, STATEMENT)
    assert caught.value.check is Check.REPLAY_REQUEST


def test_no_digest() -> None:
    """An answer that was not asked for with ids says how to ask."""
    with pytest.raises(UnavailableError, match="no digest") as caught:
        read_recorded(replace(GOOD, tokens=None), saved(), STATEMENT)
    assert caught.value.check is Check.REPLAY_DIGEST
    assert "Attested-Replay" in caught.value.advice


def test_another_digest() -> None:
    """Ids that the enclave did not sign are no evidence of anything."""
    with pytest.raises(VerificationError) as caught:
        read_recorded(GOOD, saved(response=plain((11, 12, 13, 15))), STATEMENT)
    assert caught.value.check is Check.REPLAY_DIGEST


def test_another_model_or_engine() -> None:
    """Answers of another model, version or flags cannot be compared."""
    engine = STATEMENT.engine
    check_same(STATEMENT, STATEMENT)
    others: list[tuple[Any, Check]] = [
        (SimpleNamespace(model=SimpleNamespace(digest=b"\x02" * 32), engine=engine), Check.REPLAY_MODEL),
        *(
            (
                SimpleNamespace(model=STATEMENT.model, engine=SimpleNamespace(**{**vars(engine), **changed})),
                check,
            )
            for changed, check in (
                ({"version": "1"}, Check.REPLAY_ENGINE),
                ({"flags": ()}, Check.REPLAY_ENGINE),
            )
        ),
    ]
    for other, check in others:
        with pytest.raises(UnavailableError) as caught:
            check_same(STATEMENT, other)
        assert caught.value.check is check


def test_another_number_of_choices() -> None:
    """An answer of other shape is no comparison."""
    with pytest.raises(UnavailableError) as caught:
        rerun(recorded(), Model(outputs=(OUTPUT, OUTPUT)), FLOAT32)
    assert caught.value.check is Check.REPLAY_ANSWER


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"data: {}\n\ndata: [DONE]\n\n",
        plain(OUTPUT).replace(b"prompt_token_ids", b"x"),
        plain(OUTPUT).replace(b'"token_ids"', b'"x"'),
        plain(OUTPUT).replace(b'"index": 0', b'"index": 1'),
        plain((-1,)),
        plain((2**32,)),
        plain(OUTPUT).replace(b"11", b"true"),
    ],
)
def test_answers_without_ids(answer: bytes) -> None:
    """What cannot be compared is malformed, by its own check."""
    with pytest.raises(MalformedError) as caught:
        read_choices(answer)
    assert caught.value.check is Check.REPLAY_ANSWER


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [],
        [None] * 7,
        [None, None, None, {"11": {}}, {"12": {}}, {"13": {}}, {"14": {}}],
        [None, None, None, *({str(t): {"logprob": 1e999}} for t in OUTPUT)],
        [None, None, None, *({"x": {"logprob": -1}, str(t): {"logprob": -1}} for t in OUTPUT)],
    ],
)
def test_readings_that_are_none(entries: Any) -> None:
    """Every output token has a log-probability, or nothing is compared."""
    answer = json.dumps({"choices": [{"prompt_logprobs": entries}]}).encode()
    with pytest.raises(MalformedError):
        read_prefill(answer, [Choice(prompt=PROMPT, output=OUTPUT)])


@given(st.binary(max_size=200))
@example(b"[DONE]")
def test_any_bytes(data: bytes) -> None:
    """Any bytes of an engine give a value or MalformedError."""
    for answer in (
        data,
        b"data: " + data + b"\n\n",
        b'{"choices":[{"index":0,"token_ids":[' + data + b"]}]}",
    ):
        with suppress(MalformedError):
            read_choices(answer)
        with suppress(MalformedError):
            read_prefill(answer, [Choice(prompt=(1,), output=(2,))])


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["logprob", "2", "token_ids"]), inner)
    ),
    max_leaves=8,
)


@given(_JSON, _JSON, _JSON)
def test_any_values(ids: object, logprobs: object, entry: object) -> None:
    """Any JSON in the places that are read."""
    choice = {"index": 0, "token_ids": ids, "logprobs": logprobs, "prompt_logprobs": [None, entry]}
    answer = json.dumps({"prompt_token_ids": [1], "choices": [choice]}).encode()
    with suppress(MalformedError):
        read_choices(answer)
    with suppress(MalformedError):
        read_prefill(answer, [Choice(prompt=(1,), output=(2,))])


@given(_JSON)
def test_any_request(value: object) -> None:
    """A request is read without stumbling, whatever it holds."""
    request = {"messages": value, "model": "m"}
    body = json.dumps(request).encode()
    with suppress(AttestationError):
        read_recorded(GOOD, saved(request=body), STATEMENT)
    media_in(request)
