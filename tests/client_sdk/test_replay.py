"""Replays: what two answers' tokens say of each other, with engines that are honest, lie, round, or cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attestation.bundle import SavedExchange
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.receipt import Outcome
from client_sdk.replay.answer import Choice, Ranked, digest_of, read_choices, read_prefill
from client_sdk.replay.comparing import (
    COMPLETIONS,
    DivergedError,
    Method,
    Recorded,
    check_same,
    prefill,
    read_recorded,
    replay,
    rerun,
)
from client_sdk.replay.terms import EXACT, HALF, Terms, greedy, media_in, plain_logits, terms_of
from tests.attestation.test_receipt import NONCE, RECEIPT

CHAT = "/v1/chat/completions"
PROMPT, OUTPUT = (5, 6, 7), (11, 12, 13, 14)
FLOAT32, HALVED = terms_of(["--dtype=float32"]), terms_of(["--dtype=bfloat16"])
GREEDY = {"temperature": 0, "seed": None}
SEEDED = {"temperature": 1, "seed": 7}
STATEMENT: Any = SimpleNamespace(
    model=SimpleNamespace(digest=b"\x01" * 32),
    engine=SimpleNamespace(name="vllm", version="0.32.0", flags=("--dtype=float32",)),
)


def plain(
    *outputs: Sequence[int], prompt: Sequence[int] = PROMPT, logprobs: Sequence[float] | None = None
) -> bytes:
    """A chat's answer."""
    told = {"logprobs": {"content": [{"logprob": value} for value in logprobs]}} if logprobs else {}
    choices = [{"index": i, "token_ids": list(ids), **told} for i, ids in enumerate(outputs)]
    return json.dumps({"prompt_token_ids": list(prompt), "choices": choices}).encode()


def streamed(*outputs: Sequence[int]) -> bytes:
    """The same as a stream of a completion: one token at a time, the choices mixed, and a usage event."""
    events: list[Any] = [
        {"choices": [{"index": i, "token_ids": [], "prompt_token_ids": list(PROMPT)}]}
        for i in range(len(outputs))
    ]
    for at in range(max(map(len, outputs))):
        for i, ids in enumerate(outputs):
            events.append({"choices": [{"index": i, "token_ids": list(ids[at : at + 1])}]})
    events.append({"choices": [], "usage": {}})
    return b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in events) + b"data: [DONE]\n\n"


def recorded(answer: bytes = b"", sampling: Any = None, path: str = CHAT, **request: Any) -> Recorded:
    """An exchange whose receipt holds."""
    answer = answer or plain(OUTPUT)
    choices = read_choices(answer)
    receipt = replace(
        RECEIPT,
        request=replace(RECEIPT.request, path=path),
        sampling=GREEDY if sampling is None else sampling,
        tokens=digest_of(choices, NONCE),
    )
    body = json.dumps({"model": "m", **request}).encode()
    saved = SavedExchange(receipt="", nonce=NONCE, request=body, response=answer)
    return read_recorded(receipt, saved, STATEMENT)


@dataclass
class Model:
    """An engine of which everything is known: what it answers, and how likely each token is at each place."""

    outputs: tuple[Sequence[int], ...] = (OUTPUT,)
    prompt: Sequence[int] = PROMPT
    ranks: Callable[[int, int], tuple[float, tuple[int, float]]] | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def ask(self, path: str, body: bytes, *, ids: bool) -> bytes:
        request = json.loads(body)
        self.asked.append((path, request))
        if ids:
            return plain(*self.outputs, prompt=self.prompt)
        choices = [
            {"prompt_logprobs": [None, *map(self._entry, range(1, len(p)), p[1:])]} for p in request["prompt"]
        ]
        return json.dumps({"choices": choices}).encode()

    def _entry(self, at: int, token: int) -> dict[str, Any]:
        """Its own first choice is likely, all others are not, unless told otherwise."""
        place = at - len(PROMPT)
        own = self.outputs[0][place] if 0 <= place < len(self.outputs[0]) else token
        mine, best = (-0.1 if token == own else -5.0), (own, -0.1)
        if self.ranks is not None and place >= 0:
            mine, best = self.ranks(place, token)
        return {str(token): {"logprob": mine, "rank": 2}, str(best[0]): {"logprob": best[1], "rank": 1}}


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("answer", [plain(OUTPUT), streamed(OUTPUT)], ids=["plain", "streamed"])
def test_equal(method: Method, answer: bytes) -> None:
    """An honest answer, greedy, both ways."""
    found = replay(recorded(answer), Model(), FLOAT32, method)
    assert (found.method, found.tokens, found.differing) == (method, 4, 0)


@pytest.mark.parametrize("method", list(Method))
def test_several_choices(method: Method) -> None:
    """Each choice is compared; one reading takes all of them at once."""
    logprobs = [-0.1] * 4
    mine = recorded(plain(OUTPUT, OUTPUT, logprobs=logprobs), SEEDED)
    model = Model(outputs=(OUTPUT, OUTPUT))
    assert replay(mine, model, FLOAT32, method).tokens == 8
    if method is Method.PREFILL:
        assert model.asked[0][1]["prompt"] == [[*PROMPT, *OUTPUT]] * 2


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("at", range(4))
def test_one_token_swapped(method: Method, at: int) -> None:
    """An engine that swapped one token is found out there, with what either makes of it."""
    lie = tuple(99 if i == at else token for i, token in enumerate(OUTPUT))
    with pytest.raises(DivergedError) as caught:
        replay(recorded(plain(lie)), Model(), FLOAT32, method)
    assert caught.value.check is Check.REPLAY_TOKENS
    assert (caught.value.choice, caught.value.position, caught.value.where) == (0, at, "output")
    assert caught.value.recorded == Ranked(99, -5.0)
    assert caught.value.engine == Ranked(OUTPUT[at], -0.1)


def test_a_seeded_answer_that_differs() -> None:
    """Drawn tokens must be the same in float32; what likelihood they have says nothing for them."""
    with pytest.raises(DivergedError) as caught:
        rerun(recorded(plain((11, 12, 99, 14)), SEEDED), Model(), FLOAT32)
    assert caught.value.position == 2


def test_an_answer_that_goes_on() -> None:
    """The end of an answer is compared like a token."""
    with pytest.raises(DivergedError, match="recorded was the end, the engine says token 14") as caught:
        rerun(recorded(plain(OUTPUT[:3])), Model(), FLOAT32)
    assert (caught.value.position, caught.value.recorded.token) == (3, None)


def test_another_prompt() -> None:
    """A template that reads the request differently is told as such."""
    with pytest.raises(DivergedError, match="prompt token 1") as caught:
        rerun(recorded(), Model(prompt=(5, 9, 7)), FLOAT32)
    assert caught.value.where == "prompt"


def near_tie(gap: float) -> Callable[[int, int], tuple[float, tuple[int, float]]]:
    """At the third place token 99 is a little less likely than 13; elsewhere whatever is asked is the likeliest."""

    def ranks(place: int, token: int) -> tuple[float, tuple[int, float]]:
        if place == 2:
            return (-1.0 - gap if token == 99 else -1.0), (13, -1.0)
        return -0.1, (token, -0.1)

    return ranks


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(
    ("terms", "gap", "within"),
    [(FLOAT32, EXACT / 2, True), (FLOAT32, 0.01, False), (HALVED, 0.2, True), (HALVED, HALF * 2, False)],
)
def test_near_ties(method: Method, terms: Terms, gap: float, within: bool) -> None:
    """What rounding can decide is told apart from what it cannot; after a near-tie the rest is still compared."""
    mine = recorded(plain((11, 12, 99, 15)))
    model = Model(ranks=near_tie(gap))
    if within:
        assert replay(mine, model, terms, method).differing == 1
    else:
        with pytest.raises(DivergedError):
            replay(mine, model, terms, method)


def test_what_rounding_may_have_drawn() -> None:
    """Seeded at half precision: where the tokens part the question stays open, and is told as open."""
    with pytest.raises(UnavailableError, match="bfloat16 rounding alone") as caught:
        rerun(recorded(plain((11, 12, 99, 14)), SEEDED), Model(), HALVED)
    assert caught.value.check is Check.REPLAY_TOKENS


@pytest.mark.parametrize("method", list(Method))
def test_log_probabilities(method: Method) -> None:
    """Recorded log-probabilities must be those of this model, also where tokens are drawn."""
    honest = recorded(plain(OUTPUT, logprobs=[-0.1, -0.1, -0.10002, -0.1]), SEEDED)
    assert prefill(honest, Model(), FLOAT32).worst == pytest.approx(2e-5)
    made_up = recorded(plain(OUTPUT, logprobs=[-0.1, -0.3, -0.1, -0.1]), SEEDED)
    with pytest.raises(VerificationError) as caught:
        prefill(made_up, Model(), FLOAT32)
    assert caught.value.check is Check.REPLAY_LOGPROBS


@pytest.mark.parametrize(
    ("sampling", "asked"),
    [
        (SEEDED, {}),
        ({**GREEDY, "presence_penalty": 0.5}, {}),
        ({**GREEDY, "logit_bias": {"5": 1}}, {}),
        ({**GREEDY, "allowed_token_ids": [1]}, {}),
        (GREEDY, {"response_format": {"type": "json_object"}}),
        (GREEDY, {"tools": [{}]}),
    ],
)
def test_what_one_reading_cannot_judge(sampling: Any, asked: Any) -> None:
    """Drawn tokens and changed logits, without log-probabilities: refused, while a rerun still tells."""
    mine = recorded(sampling=sampling, **asked)
    with pytest.raises(UnavailableError) as caught:
        prefill(mine, Model(), FLOAT32)
    assert caught.value.check is Check.REPLAY_REQUEST
    assert rerun(mine, Model(), FLOAT32).differing == 0


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


@settings(deadline=None)  # the first example pays for what the others find ready
@given(_JSON)
def test_any_request(value: object) -> None:
    """A request is read without stumbling, whatever it holds."""
    request = {"messages": value, "model": "m"}
    body = json.dumps(request).encode()
    with suppress(AttestationError):
        read_recorded(GOOD, saved(request=body), STATEMENT)
    media_in(request)


def test_terms() -> None:
    """float32 alone is exact, and only with weights and cache as they are; an auditor's tolerance comes first."""
    assert terms_of(["--dtype=float32"]) == Terms("float32", EXACT, True)
    assert terms_of(["--dtype=bfloat16"]) == Terms("bfloat16", HALF, False)
    assert terms_of([]) == Terms("auto", HALF, False)
    assert not terms_of(["--dtype=float32", "--kv-cache-dtype=fp8"]).exact
    assert terms_of(["--dtype=float32"], 0.5).tolerance == 0.5


def test_greedy_and_plain() -> None:
    """As vLLM decides it."""
    assert greedy({"temperature": 0})
    assert greedy({"temperature": 1e-6})
    assert not greedy({})
    assert not greedy({"temperature": 0.01})
    assert plain_logits(
        {**GREEDY, "presence_penalty": 0, "repetition_penalty": 1.0, "logit_bias": {}}, {"tools": []}
    )
    assert not plain_logits({"min_tokens": 3}, {})


def test_the_request_is_sent_as_it_was() -> None:
    """The same bytes to the same route; one reading goes to completions."""
    model = Model()
    mine = recorded(stream=True)
    rerun(mine, model, FLOAT32)
    prefill(mine, model, FLOAT32)
    assert model.asked[0] == (CHAT, {"model": "m", "stream": True})
    path, body = model.asked[1]
    assert (path, body["model"], body["max_tokens"]) == (COMPLETIONS, "m", 1)
