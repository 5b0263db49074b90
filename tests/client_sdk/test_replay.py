"""Replays: what two answers' tokens say of each other, with engines that are honest, lie, round, or cannot tell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from client_sdk.replay.answer import Ranked
from client_sdk.replay.comparing import COMPLETIONS, DivergedError, Method, prefill, replay, rerun
from client_sdk.replay.terms import EXACT, HALF, Terms, greedy, plain_logits, terms_of
from tests.client_sdk.replayed import (
    CHAT,
    FLOAT32,
    GREEDY,
    HALVED,
    OUTPUT,
    PROMPT,
    SEEDED,
    plain,
    recorded,
    streamed,
)


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
