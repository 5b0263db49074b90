"""The whole path on one machine: a real model behind the gateway in a SIMULATED TEE, and a client that verifies it.

`make demo` runs this. It types what an operator and a user would type; nothing here is special to the demo.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import urlopen

from attestation._b64 import b64url_decode
from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from client_sdk import OpenAI
from client_sdk.exchange import Exchange
from client_sdk.receipts import check_answer

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache" / "demo"
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct-Q4_1-dequantized"
QUESTION = "What is the capital of France? Answer in one sentence."
START_SECONDS = 240


def main() -> int:
    """Run every step; the exit status says whether all of them did what they should."""
    HOME.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    url = f"https://127.0.0.1:{port}"
    config = _write_config(port)
    policy = HOME / "policy.toml"

    _step("The operator writes a configuration, and the policy that accepts exactly it")
    text = _run("enclave-server", "policy", "--config", str(config))
    policy.write_text(text)
    _say(f"{policy.relative_to(ROOT)} names the simulator's roots: no default policy trusts them")

    _step("The operator gives out an API key: shown once, stored as its SHA-256")
    for old in HOME.glob("access.db*"):
        old.unlink()
    key = _run("enclave-server", "keys", "create", "demo", "--config", str(config)).strip()
    os.environ["OPENAI_API_KEY"] = key  # where OpenAI's client, ours and `attested chat` look for it
    _run("enclave-server", "keys", "list", "--config", str(config), show=True)

    _step("The gateway starts: model files hashed, vLLM loaded, keys made in memory")
    with _gateway(config, url):
        _step("A client verifies the enclave before it sends anything")
        _run("attested", "verify", url, "--policy", str(policy), show=True)

        _step("A chat, streamed; its receipt is verified before the end is handed out")
        saved = str(HOME / "answer.json")
        asked = ("--policy", str(policy), "--seed", "7", "--save", saved)
        _run("attested", "chat", url, *asked, QUESTION, show=True)

        _step("The saved answer, run again and compared token by token")
        _run("attested", "replay", saved, "--policy", str(policy), "--engine", url, show=True)

        _step("The same answer with one word changed after the enclave signed it")
        refused = _tamper(url, policy)
    if refused is None:
        _say("ACCEPTED: that must not happen")
        return 1
    _say(f"REFUSED  {refused}")
    _say("everything above ran for real, but in a SIMULATED TEE: it proves nothing about hardware")
    return 0


def _write_config(port: int) -> Path:
    """The operator's file. On a GPU machine the engine settings and the `tee` differ, nothing else."""
    digest = _run("enclave-server", "model", "digest", str(MODEL)).strip()
    config = HOME / "enclave.toml"
    config.write_text(
        f"""\
port = {port}
model_dir = "{MODEL}"
model_name = "smollm2-135m-instruct"
model_digest = "{digest}"
tee = "simulated-tdx"
simulator_dir = "{HOME / "simulator"}"
simulated_gpus = 1
access_database = "sqlite:///{HOME / "access.db"}"
engine_python = "{ROOT / ".venv-engine" / "bin" / "python"}"
engine_dtype = "float32"
engine_eager = true
engine_max_model_len = 2048
engine_kv_cache_memory = "512M"
"""
    )
    return config


@contextmanager
def _gateway(config: Path, url: str) -> Iterator[None]:
    """`enclave-server serve`, until it is ready; ended with SIGTERM, as an operator would."""
    log = HOME / "gateway.log"
    command = [str(BIN / "enclave-server"), "serve", "--config", str(config)]
    _say(f"$ enclave-server serve --config {config.relative_to(ROOT)}   (log: {log.relative_to(ROOT)})")
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT) as process:
        try:
            _wait(process, url, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    start = time.monotonic()
    while (reason := _unready(url)) is not None:
        waited = time.monotonic() - start
        if process.poll() is not None or waited > START_SECONDS:
            raise SystemExit(f"the gateway did not become ready ({reason}); see {log}")
        _progress(f"loading the model: {waited:.0f} s (usually 30 to 60)")
        time.sleep(1)
    _progress(f"ready after {time.monotonic() - start:.0f} s", last=True)


def _unready(url: str) -> str | None:
    """Why `/readyz` is not 200 yet. Readiness is no secret and proves nothing, so the certificate is not looked at."""
    trust_anybody = ssl._create_unverified_context()  # noqa: S323, SLF001
    try:
        with urlopen(f"{url}/readyz", timeout=5, context=trust_anybody):  # noqa: S310
            return None
    except HTTPError as exc:
        with exc:
            return exc.read().decode()
    except OSError as exc:
        return str(exc)


def _tamper(url: str, policy: Path) -> AttestationError | None:
    """Take a genuine answer and its receipt, change one word, and check it as the SDK does."""
    with OpenAI(base_url=f"{url}/v1", policy=policy) as client:
        genuine: Any = client.chat.completions.with_raw_response.create(
            model="smollm2-135m-instruct", messages=[{"role": "user", "content": QUESTION}], temperature=0
        )
    answer, request = genuine.http_response, genuine.http_request
    attestation = answer.extensions["attestation"]
    exchange = Exchange(
        verdict=attestation.verdict,
        nonce=b64url_decode(answer.headers["Attested-Nonce"], Check.BINDING_NONCE, "nonce"),
        method=request.method,
        path=request.url.raw_path.decode(),
        body=request.content,
    )
    word = genuine.parse().choices[0].message.content.split()[-1].encode()
    forged = answer.content.replace(word, b"Rome.", 1)
    _say(f"the enclave signed:  …{_around(answer.content, word)}…")
    _say(f"the client is given: …{_around(forged, b'Rome.')}…")
    try:
        check = check_answer(exchange, answer.status_code, answer.headers)
        now = datetime.now(UTC)
        check.feed(forged, now)
        check.finish(now)
    except VerificationError as exc:
        return exc
    return None


def _around(data: bytes, word: bytes) -> str:
    at = data.find(word)
    return data[max(0, at - 30) : at + 20].decode(errors="replace").replace("\n", " ")


def _run(name: str, *arguments: str, show: bool = False) -> str:
    """Run a command as a user would; a failure of it ends the demo."""
    if show:
        _say("$ " + shlex.join([name, *(a.removeprefix(f"{ROOT}/") for a in arguments)]))
    out = None if show else subprocess.PIPE
    result = subprocess.run([BIN / name, *arguments], stdout=out, text=True, cwd=ROOT, check=False)
    if result.returncode:
        raise SystemExit(f"{name} {arguments[0]} ended with exit code {result.returncode}")
    return result.stdout or ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _step(text: str) -> None:
    _step.number += 1  # type: ignore[attr-defined]
    print(f"\n{_step.number}. {text}", flush=True)  # type: ignore[attr-defined]


_step.number = 0  # type: ignore[attr-defined]


def _say(text: str) -> None:
    print(f"   {text}", flush=True)


def _progress(text: str, *, last: bool = False) -> None:
    """One line that is written over on a terminal, and printed only once at its end elsewhere."""
    if sys.stdout.isatty():
        print(f"\r   {text}", end="\n" if last else "", flush=True)
    elif last:
        _say(text)


if __name__ == "__main__":
    sys.exit(main())
