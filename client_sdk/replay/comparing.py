"""Replays: an answer's tokens held against what another engine with the same model says to the same request.

Two ways, on the terms of docs/replay.md. `rerun` sends the request again and compares token by token. `prefill` has the
engine read prompt and answer once, and compares what it thinks of each token; it costs one token instead of all.
Everything raises: VerificationError (a `DivergedError` with both candidates) where the answers differ, UnavailableError
where they cannot be compared. Nothing here opens a connection; `engine` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

from attestation._json import parse_json_object
from attestation.binding import Statement
from attestation.bundle import MAX_BUNDLE_BYTES, SavedExchange
from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from attestation.receipt import Outcome, Receipt
from client_sdk.replay.answer import Choice, Ranked, digest_of, read_choices, read_prefill
from client_sdk.replay.terms import Terms, greedy, media_in, plain_logits

COMPLETIONS = "/v1/completions"
ROUTES = frozenset({"/v1/chat/completions", COMPLETIONS})


class Method(StrEnum):
    """How an answer is compared."""

    RERUN = "rerun"  # the whole request again
    PREFILL = "prefill"  # one reading of prompt and answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An exchange whose receipt holds, taken apart for a replay."""

    body: bytes = field(repr=False)
    request: Mapping[str, Any] = field(repr=False)
    path: str
    receipt: Receipt
    statement: Statement
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """An answer that another engine would have given, too."""

    method: Method
    tokens: int  # of the output, all choices together
    differing: int = 0  # of them, those that the engine would not have chosen, within the tolerance
    worst: float = 0.0  # the largest difference between log-probabilities that were compared
    tolerance: float


class DivergedError(VerificationError):
    """The first token at which the two part: of which choice, where, and what either engine says there."""

    def __init__(self, choice: int, position: int, recorded: Ranked, engine: Ranked, *, prompt: bool = False):
        where = "prompt" if prompt else "output"
        super().__init__(
            Check.REPLAY_TOKENS,
            f"{where} token {position} of choice {choice}: recorded was {recorded}, the engine says {engine}",
            advice=_PROMPT if prompt else _OUTPUT,
        )
        self.choice, self.position, self.where = choice, position, where
        self.recorded, self.engine = recorded, engine


_PROMPT = "The two engines read the request differently: a template that names the date does that, too"
_OUTPUT = (
    "Repeat it on a third node: one of the two did not run this model on this request as its statement says"
)


class Engine(Protocol):
    """What runs the request again."""

    def ask(self, path: str, body: bytes, *, ids: bool) -> bytes:
        """The body of a 200, with token ids if those are asked for; anything else is UnavailableError."""
        ...


def read_recorded(receipt: Receipt, exchange: SavedExchange, statement: Statement) -> Recorded:
    """Take an audited exchange apart, or say why nothing of it can be run again."""
    path = receipt.request.path.partition("?")[0]
    if receipt.outcome is not Outcome.COMPLETE or path not in ROUTES:
        raise unreplayable(f"the outcome is {receipt.outcome}, of a request to {path}")
    if exchange.request is None or exchange.response is None:
        raise unreplayable("request and response are needed: the bundle has their digests only")
    if receipt.tokens is None:
        raise UnavailableError(
            Check.REPLAY_DIGEST,
            "the receipt has no digest over token ids",
            advice="It has one where the request was sent with `Attested-Replay: 1`, as by `attested chat --seed N`",
        )
    choices = read_choices(exchange.response)
    if (found := digest_of(choices, exchange.nonce)) != receipt.tokens:
        raise VerificationError(
            Check.REPLAY_DIGEST,
            f"the enclave signed the digest {receipt.tokens.hex()} over token ids; those in the answer have {found.hex()}",
            advice="The enclave signed something else than it sent; do not rely on it",
        )
    request = parse_json_object(exchange.request, Check.REPLAY_REQUEST, "the request", limit=MAX_BUNDLE_BYTES)
    sampling = receipt.sampling
    if sampling.get("use_beam_search"):
        raise unreplayable("it was a beam search")
    if not greedy(sampling) and sampling.get("seed") is None:
        raise unreplayable("it was sampled without a seed: the engine would draw other tokens")
    if media_in(request):
        raise unreplayable("it has media, which token ids do not tell")
    return Recorded(
        body=exchange.request,
        request=request,
        path=path,
        receipt=receipt,
        statement=statement,
        choices=choices,
    )


def check_same(recorded: Statement, other: Statement) -> None:
    """The other enclave serves the same model with the same engine and flags, so that its answers can be compared."""
    if recorded.model.digest != other.model.digest:
        raise UnavailableError(
            Check.REPLAY_MODEL,
            f"the answer is of the model {recorded.model.digest.hex()}, there the model is {other.model.digest.hex()}",
            advice="Replay it on a node that serves the same model",
        )
    for what in ("name", "version", "flags"):
        mine, found = getattr(recorded.engine, what), getattr(other.engine, what)
        if mine != found:
            raise UnavailableError(
                Check.REPLAY_ENGINE,
                f"the engine's {what} was {_words(mine)}, there it is {_words(found)}",
                advice="Replay it on a node with the same engine and flags: another one may choose other tokens, honestly",
            )


def replay(recorded: Recorded, engine: Engine, terms: Terms, method: Method = Method.RERUN) -> Replayed:
    """Compare in one of the two ways."""
    return (rerun if method is Method.RERUN else prefill)(recorded, engine, terms)


def rerun(recorded: Recorded, engine: Engine, terms: Terms) -> Replayed:
    """The whole request again. At a near-tie, which rounding decides, what follows is judged by `prefill`."""
    again = read_choices(engine.ask(recorded.path, recorded.body, ids=True))
    if len(again) != len(recorded.choices):
        raise _unusable(f"{len(again)} choices, recorded were {len(recorded.choices)}")
    for index, (old, new) in enumerate(zip(recorded.choices, again, strict=True)):
        if old.prompt != new.prompt:
            at, mine, other = _parting(old.prompt, new.prompt)
            raise DivergedError(index, at, Ranked(mine), Ranked(other), prompt=True)
        if old.output != new.output:
            at, mine, other = _parting(old.output, new.output)
            return _parted(recorded, engine, terms, index, at, (mine, other))
    worst = max((_farthest(old, new, terms) for old, new in zip(recorded.choices, again, strict=True)))
    return _held(recorded, Method.RERUN, terms, worst=worst)


def prefill(recorded: Recorded, engine: Engine, terms: Terms) -> Replayed:
    """One reading of prompt and answer: every token is the likeliest there, or as likely as was recorded."""
    ranks = greedy(recorded.receipt.sampling) and plain_logits(recorded.receipt.sampling, recorded.request)
    if not ranks and any(choice.logprobs is None for choice in recorded.choices):
        raise unreplayable(
            "one reading can judge it neither by rank (it was sampled, or logits were changed) nor by recorded "
            "log-probabilities (the answer has none)"
        )
    differing, worst = 0, 0.0
    for index, (choice, judged) in enumerate(_prefilled(recorded, engine, recorded.choices)):
        for at, (mine, best) in enumerate(judged):
            if ranks and mine.token != best.token:
                if _apart(mine, best) > terms.tolerance:
                    raise DivergedError(index, at, mine, best)
                differing += 1
        worst = max(worst, _farthest(choice, _with_logprobs(choice, judged), terms))
    return _held(recorded, Method.PREFILL, terms, differing=differing, worst=worst)


def unreplayable(why: str) -> UnavailableError:
    return UnavailableError(Check.REPLAY_REQUEST, f"this exchange cannot be replayed: {why}")


def _parted(
    recorded: Recorded,
    engine: Engine,
    terms: Terms,
    index: int,
    at: int,
    tokens: tuple[int | None, int | None],
) -> Replayed:
    """The answers differ: a near-tie, a lie, or, where rounding moves a draw, a question that stays open."""
    choice = recorded.choices[index]
    ends = [Choice(prompt=choice.prompt, output=(*choice.output[:at], t)) for t in tokens if t is not None]
    judged = {j[-1][0].token: j[-1][0] for _, j in _prefilled(recorded, engine, ends)}
    mine, other = (judged.get(token, Ranked(token)) for token in tokens)
    diverged = DivergedError(index, at, mine, other)
    if greedy(recorded.receipt.sampling) and plain_logits(recorded.receipt.sampling, recorded.request):
        if None not in tokens and _apart(mine, other) <= terms.tolerance:
            return prefill(recorded, engine, terms)
        raise diverged
    if terms.exact:
        raise diverged
    raise UnavailableError(
        Check.REPLAY_TOKENS,
        f"{diverged.detail}; at {terms.dtype} rounding alone can change what is drawn",
        advice="Only float32 tells here; the `prefill` method can judge recorded log-probabilities",
    )


def _prefilled(
    recorded: Recorded, engine: Engine, choices: Sequence[Choice]
) -> Iterator[tuple[Choice, list[tuple[Ranked, Ranked]]]]:
    body = {
        "model": recorded.request.get("model"),
        "prompt": [[*choice.prompt, *choice.output] for choice in choices],
        "prompt_logprobs": 1,
        "max_tokens": 1,
        "temperature": 0,
    }
    answer = engine.ask(COMPLETIONS, json.dumps(body).encode(), ids=False)
    return zip(choices, read_prefill(answer, choices), strict=True)


def _held(recorded: Recorded, method: Method, terms: Terms, *, differing: int = 0, worst: float) -> Replayed:
    tokens = sum(len(choice.output) for choice in recorded.choices)
    return Replayed(method=method, tokens=tokens, differing=differing, worst=worst, tolerance=terms.tolerance)


def _with_logprobs(choice: Choice, judged: Sequence[tuple[Ranked, Ranked]]) -> Choice:
    return replace(choice, logprobs=tuple(mine.logprob or 0.0 for mine, _ in judged))


def _farthest(recorded: Choice, found: Choice, terms: Terms) -> float:
    """The largest difference between log-probabilities of the same tokens, where both have them; within the tolerance."""
    worst = 0.0
    for at, (old, new) in enumerate(zip(recorded.logprobs or (), found.logprobs or (), strict=False)):
        if abs(old - new) > terms.tolerance:
            raise VerificationError(
                Check.REPLAY_LOGPROBS,
                f"output token {at}: recorded was the log-probability {old:.5f}, the engine says {new:.5f}; at "
                f"{terms.dtype} they may lie {terms.tolerance} apart",
                advice=_OUTPUT,
            )
        worst = max(worst, abs(old - new))
    return worst


def _parting(old: Sequence[int], new: Sequence[int]) -> tuple[int, int | None, int | None]:
    """Where two rows of tokens part, and what either has there; None where it has ended."""
    at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return at, (old[at] if at < len(old) else None), (new[at] if at < len(new) else None)


def _apart(one: Ranked, other: Ranked) -> float:
    return abs((one.logprob or 0.0) - (other.logprob or 0.0))


def _unusable(what: str) -> UnavailableError:
    return UnavailableError(Check.REPLAY_ANSWER, f"the engine's answer cannot be compared: {what}")


def _words(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)
