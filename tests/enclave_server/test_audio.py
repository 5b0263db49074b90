"""Audio, with a stand-in for the engine: forms as clients write them, whole and streamed, and their limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.receipt import Outcome
from tests.caller import Caller
from tests.servers import MODEL, FakeEngine, live_gateway

LIMIT = 300_000
PATHS = ["/v1/audio/transcriptions", "/v1/audio/translations"]
SOUND = b"RIFF" + bytes(range(256)) * 1000 + b"\r\n--\r\n"  # every byte, and what looks like a boundary
EVENT = b'data: {"object":"transcription.chunk","choices":[{"delta":{"content":"Hello"}}]}\n\n'
COUNTED = b'data: {"object":"transcription.chunk","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
def caller(tmp_path: Path, engine: FakeEngine) -> Iterator[Caller]:
    with (
        live_gateway(tmp_path, engine=engine, max_request_bytes=LIMIT) as gateway,
        Caller(gateway.origin, gateway.policy_text) as verified,
    ):
        yield verified


def form(sound: bytes = SOUND, **fields: Any) -> tuple[bytes, dict[str, str]]:
    """A form as httpx, and with it OpenAI's client, writes one; and its content type."""
    written = httpx.Request(
        "POST", "https://x", data={"model": MODEL, **fields}, files={"file": ("a.wav", sound, "audio/wav")}
    )
    return written.read(), {"Content-Type": written.headers["content-type"]}


@pytest.mark.parametrize("path", PATHS)
def test_a_form_passes_unchanged(caller: Caller, engine: FakeEngine, path: str) -> None:
    """The engine gets the client's bytes, boundary and file; the receipt is over them, and names what steers sampling."""
    body, kind = form(language="de", temperature="0", seed="7", response_format="verbose_json")
    answer = caller.post(path, body, kind)
    assert (answer.status, answer.outcome) == (200, Outcome.COMPLETE)
    assert answer.receipt.sampling == {"temperature": 0, "seed": 7}
    assert answer.receipt.request.length == len(body)
    seen = engine.requests[-1]
    assert (seen.path, seen.body, seen.headers["Content-Type"]) == (path, body, kind["Content-Type"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("stream", "outcome", "tokens"),
    [(EVENT + COUNTED + DONE, Outcome.COMPLETE, 2), (EVENT, Outcome.ABORTED, None)],
)
def test_streams(
    caller: Caller, engine: FakeEngine, path: str, stream: bytes, outcome: Outcome, tokens: int | None
) -> None:
    """A transcript comes event by event; one that breaks off is not taken for a whole one."""
    engine.behaviour.raw_stream = stream
    answer = caller.post(path, *form(stream="true", stream_include_usage="true"))
    assert answer.outcome is outcome
    assert answer.body.startswith(stream)
    assert (answer.receipt.usage and answer.receipt.usage.completion_tokens) == tokens


@pytest.mark.parametrize("path", PATHS)
def test_too_large(caller: Caller, engine: FakeEngine, path: str) -> None:
    """A file beyond `max_request_bytes` is refused before it is read."""
    answer = caller.post(path, *form(bytes(LIMIT)))
    assert (answer.status, answer.error) == (413, "request_too_large")
    assert not engine.requests


def test_addresses_and_unknown_fields_are_refused(caller: Caller, engine: FakeEngine) -> None:
    """What would make the engine fetch or load something is no field here."""
    for field in ("url", "vllm_xargs", "to_language_of_another"):
        answer = caller.post(PATHS[0], *form(SOUND, **{field: "https://x"}))
        assert answer.status == 400
        assert json.loads(answer.body)["error"]["param"] == field
    assert not engine.requests
