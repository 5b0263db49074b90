"""The README's promise, kept with the quick-start model: a real vLLM, the installed commands, the client as users write it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk import AsyncOpenAI, OpenAI
from tests.served import VLLM_SECONDS, Served, engine_python, model_settings, served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def enclave(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The quick-start model behind the gateway, with one simulated GPU; its policy lies in `policy.toml`."""
    folder = ROOT / ".cache/models/SmolLM2-135M-Instruct-Q4_1-dequantized"
    python = engine_python()
    if not folder.is_dir():
        subprocess.run([python, "-m", "tools.quickstart_model"], cwd=ROOT, check=True, timeout=300)
    settings: dict[str, Any] = {
        **model_settings(folder, MODEL),
        "simulated_gpus": 1,
        "engine_python": str(python),
        "engine_dtype": "float32",
        "engine_max_model_len": 2048,
        "engine_kv_cache_memory": "512M",
        "engine_eager": True,
    }
    with served(tmp_path_factory.mktemp("enclave"), seconds=VLLM_SECONDS, **settings) as gateway:
        (gateway.folder / "policy.toml").write_text(gateway.policy())
        yield gateway


def test_the_readmes_code_runs(
    enclave: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's six lines print a real answer, with nothing changed but the port."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert "https://127.0.0.1:8443" in code
    monkeypatch.chdir(enclave.folder)
    exec(code.replace("https://127.0.0.1:8443", enclave.origin), {})  # noqa: S102 - the README's own code
    assert len(capsys.readouterr().out.strip()) > 3


def test_the_same_question_by_every_way_gets_the_same_verified_answer(enclave: Served) -> None:
    """Plain and streamed, greedy: the same text, and a receipt that counts the tokens as vLLM did."""
    with OpenAI(
        base_url=f"{enclave.origin}/v1", policy=enclave.folder / "policy.toml", api_key="none"
    ) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0
        )
        plain = raw.parse()
        attestation = raw.http_response.extensions["attestation"]
        stream = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert "Paris" in (plain.choices[0].message.content or "")
    assert streamed == plain.choices[0].message.content
    assert plain.usage is not None
    assert attestation.receipt.usage.completion_tokens == plain.usage.completion_tokens
    assert attestation.verdict.simulated
    assert len(attestation.verdict.gpus) == 1


async def test_the_async_client_gets_it_too(enclave: Served) -> None:
    """AsyncOpenAI, streamed, to the end."""
    async with AsyncOpenAI(
        base_url=f"{enclave.origin}/v1", policy=enclave.folder / "policy.toml", api_key="none"
    ) as client:
        stream = await client.completions.create(model=MODEL, prompt="The sky is", max_tokens=8, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])
        assert stream.response.extensions["attestation"].receipt is not None
    assert text


def test_the_commands_verify_and_chat(enclave: Served) -> None:
    """`attested verify` accepts and `attested chat` answers, as the README shows them."""
    policy = str(enclave.folder / "policy.toml")
    verify = subprocess.run(
        [BIN / "attested", "verify", enclave.origin, "--policy", policy],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert verify.returncode == 0, verify.stdout + verify.stderr
    assert "ACCEPTED" in verify.stdout
    assert "SIMULATED" in verify.stdout
    chat = subprocess.run(
        [BIN / "attested", "chat", enclave.origin, "--policy", policy, QUESTION],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert chat.returncode == 0, chat.stdout + chat.stderr
    assert chat.stdout.strip()
    assert "receipt" in chat.stderr


def test_the_default_roots_refuse_the_simulated_machine(enclave: Served, tmp_path: Path) -> None:
    """Without the simulator's roots in its policy a client refuses, with the code for "not authentic"."""
    policy = re.sub(r"\[\[roots\.[^[]*", "", (enclave.folder / "policy.toml").read_text())
    assert "roots" not in policy
    (tmp_path / "policy.toml").write_text(policy)
    refused = subprocess.run(
        [BIN / "attested", "chat", enclave.origin, "--policy", tmp_path / "policy.toml", QUESTION],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert refused.returncode == 3
    assert "tdx.root" in refused.stderr
    assert not refused.stdout.strip()


def test_the_older_openai_client_gets_it_too(enclave: Served) -> None:
    """openai 2.x, over httpx, in an environment of its own: the README's code again."""
    python = ROOT / ".venv-openai2/bin/python"
    if not python.is_file():
        pytest.skip("no .venv-openai2: `make setup` makes it")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    version = "import openai; assert openai.__version__.startswith('2.'), openai.__version__\n"
    result = subprocess.run(
        [python, "-c", version + code.replace("https://127.0.0.1:8443", enclave.origin)],
        cwd=enclave.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) > 3


@pytest.mark.slow
def test_the_demo() -> None:
    """`make demo` goes through all of its steps, and ends with a refusal of the changed answer."""
    engine_python()
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "EQUAL" in done.stdout
    assert "REFUSED  [receipt." in done.stdout
    assert "proves nothing about hardware" in done.stdout
