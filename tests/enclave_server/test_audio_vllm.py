"""The audio routes with real vLLM and a tiny random Whisper, asked by OpenAI's client through our SDK.

vLLM reads sound with libraries of its `audio` extra, which the engine's environment has.
"""

from __future__ import annotations

import io
import json
import math
import struct
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.receipt import Outcome
from client_sdk import OpenAI
from tests.caller import Caller
from tests.enclave_server.test_audio import form
from tests.served import VLLM_SECONDS, Served, engine_python, model_settings, served, vllm_settings
from tests.servers import MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(5 * VLLM_SECONDS)]

ROOT = Path(__file__).resolve().parent.parent.parent
PATHS = ["/v1/audio/transcriptions", "/v1/audio/translations"]


def tiny_whisper() -> Path:
    """The tiny random model of speech, made in seconds when it is not there."""
    folder = ROOT / ".cache/models/tiny-random-whisper"
    if not folder.is_dir():
        subprocess.run([engine_python(), "-m", "tools.tiny_whisper"], cwd=ROOT, check=True, timeout=240)
    return folder


def sound(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    """A tone, as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        samples = (int(9000 * math.sin(at / 9)) for at in range(int(seconds * rate)))
        writer.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return file.getvalue()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    values = {**vllm_settings(), **model_settings(tiny_whisper(), MODEL), "engine_max_model_len": 448}
    values["engine_flags"] = ["--mm-processor-cache-gb=0", "--no-enable-prefix-caching"]
    with served(tmp_path_factory.mktemp("audio"), seconds=3 * VLLM_SECONDS, **values) as running:
        yield running


@pytest.fixture
def caller(gateway: Served) -> Iterator[Caller]:
    with Caller(gateway.origin, gateway.policy()) as verified:
        yield verified


def test_no_sound_is_remembered(gateway: Served, caller: Caller) -> None:
    """With the two flags that docs/access.md names, vLLM keeps nothing by which a second sender of a sound would be answered sooner."""
    for _ in range(2):
        body, kind = form(sound(2), temperature="0", max_completion_tokens="4")
        assert caller.post(PATHS[0], body, kind).outcome is Outcome.COMPLETE
    assert gateway.engine_count("vllm:mm_cache_hits_total") == 0
    assert gateway.engine_count("vllm:prefix_cache_hits_total") == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form(caller: Caller, path: str, stream: bool) -> None:
    """Plain and streamed: whole, signed, with the numbers that vLLM counted of a stream."""
    more = {"stream": "true", "stream_include_usage": "true"} if stream else {}
    body, kind = form(sound(), temperature="0", seed="7", max_completion_tokens="12", **more)
    answer = caller.post(path, body, kind)
    assert (answer.status, answer.outcome) == (200, Outcome.COMPLETE), answer.body
    assert answer.receipt.sampling == {"temperature": 0, "seed": 7, "max_completion_tokens": 12}
    assert (answer.receipt.usage and answer.receipt.usage.completion_tokens) == (12 if stream else None)
    if stream:
        assert answer.events[-1] == "[DONE]"
    else:
        assert answer.json["text"]


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_sound(caller: Caller, path: str) -> None:
    """vLLM's own refusal comes through, signed as an error."""
    answer = caller.post(path, *form(b"no sound at all"))
    assert (answer.status, answer.outcome) == (400, Outcome.ERROR)
    assert "audio" in json.loads(answer.body)["error"]["message"].lower()


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # what openai 3 says of translations
def test_with_the_sdk(gateway: Served, tmp_path: Path) -> None:
    """OpenAI's own calls, sealed and verified by our SDK: transcribed, translated, and streamed."""
    policy = tmp_path / "policy.toml"
    policy.write_text(gateway.policy())
    asked: dict[str, Any] = {"model": MODEL, "file": ("tone.wav", sound(), "audio/wav"), "temperature": 0}
    with OpenAI(base_url=f"{gateway.origin}/v1", policy=policy, api_key="unused") as client:
        whole = client.audio.transcriptions.create(**asked, language="de")
        pieces: list[Any] = list(client.audio.transcriptions.create(**asked, language="de", stream=True))
        translated = client.audio.translations.create(**asked)
    said = [piece.to_dict() for piece in pieces]
    words = [choice["delta"]["content"] for piece in said for choice in piece["choices"]]
    assert whole.text
    assert "".join(words) == whole.text
    assert translated.text
