"""Models that give no words: vectors, scores and classes from real vLLM, each with a right receipt."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from attestation.receipt import Outcome
from client_sdk import OpenAI
from tests.caller import Caller
from tests.served import VLLM_SECONDS, Served, engine_python, model_settings, served, vllm_settings

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(3 * VLLM_SECONDS)]

ROOT = Path(__file__).resolve().parent.parent.parent
POOLING: dict[str, Any] = {"engine_flags": ["--runner=pooling"]}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The tiny model, of which vLLM takes the last hidden state in place of words."""
    with served(tmp_path_factory.mktemp("e"), seconds=VLLM_SECONDS, **vllm_settings(), **POOLING) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A tiny model with two classes."""
    folder = tmp_path_factory.mktemp("c")
    model = folder / "model"
    command = [str(engine_python()), "-m", "tools.tiny_model", "--labels", "2", "--out", str(model)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    settings = vllm_settings() | model_settings(model, "tiny") | POOLING
    with served(folder, seconds=VLLM_SECONDS, **settings) as gateway:
        yield gateway


def calling(gateway: Served) -> Caller:
    return Caller(gateway.origin, gateway.policy())


def test_embeddings(embedder: Served) -> None:
    """The same text has the same vector, another text another one; tokens are counted in the receipt."""
    with calling(embedder) as caller:
        answer = caller.post("/v1/embeddings", {"model": "tiny", "input": ["one", "one", "two"]})
        assert answer.outcome is Outcome.COMPLETE
        first, again, other = (item["embedding"] for item in answer.json["data"])
        assert len(first) == 128
        assert math.isclose(math.hypot(*first), 1, rel_tol=1e-3)
        assert cosine(first, again) > 0.9999 > cosine(first, other)
        assert answer.receipt.usage is not None
        assert answer.receipt.usage.prompt_tokens == answer.json["usage"]["prompt_tokens"]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_embeddings_with_openai(embedder: Served, tmp_path: Path) -> None:
    """OpenAI's client, which asks for base64 of its own accord, and for floats when told to."""
    policy = tmp_path / "policy.toml"
    policy.write_text(embedder.policy())
    with OpenAI(base_url=f"{embedder.origin}/v1", policy=policy, api_key="unused") as client:
        packed = client.embeddings.create(model="tiny", input="one").data[0].embedding
        plain = client.embeddings.create(model="tiny", input="one", encoding_format="float").data[0].embedding
        assert packed == pytest.approx(plain, abs=1e-6)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])


def test_scores(embedder: Served) -> None:
    """Two texts are compared, and documents put in the order of their likeness to a question."""
    with calling(embedder) as caller:
        score = caller.post("/v1/score", {"model": "tiny", "text_1": "one", "text_2": ["two", "one"]})
        assert score.outcome is Outcome.COMPLETE
        assert score.json["data"][1]["score"] > score.json["data"][0]["score"]
        ranked = caller.post(
            "/v1/rerank", {"model": "tiny", "query": "one", "documents": ["two", "one"], "top_n": 1}
        )
        assert [result["index"] for result in ranked.json["results"]] == [1]


def test_pooling(embedder: Served) -> None:
    """The hidden states themselves."""
    with calling(embedder) as caller:
        answer = caller.post("/v1/pooling", {"model": "tiny", "input": "one"})
        assert (answer.status, answer.outcome) == (200, Outcome.COMPLETE)


def test_classes(classifier: Served) -> None:
    """A text's most likely class, with the name that the model's files give it."""
    with calling(classifier) as caller:
        answer = caller.post("/v1/classify", {"model": "tiny", "input": ["one", "two"]})
        assert answer.outcome is Outcome.COMPLETE
        for item in answer.json["data"]:
            assert item["label"] in {"label-0", "label-1"}
            assert sum(item["probs"]) == pytest.approx(1, abs=1e-3)


WORDS: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", WORDS),
        ("completions", {"prompt": "x"}),
        ("responses", {"input": "x"}),
        ("messages", {**WORDS, "max_tokens": 4}),
        ("classify", {"input": "x"}),
    ],
)
def test_what_the_model_cannot(embedder: Served, path: str, body: dict[str, Any]) -> None:
    """Routes of other tasks are a signed 404 in the shape that the route's clients expect."""
    with calling(embedder) as caller:
        answer = caller.post(f"/v1/{path}", {"model": "tiny", **body})
        assert (answer.status, answer.error, answer.outcome) == (404, "not_found", Outcome.ERROR)
        assert ("type" in answer.json) is (path == "messages")
