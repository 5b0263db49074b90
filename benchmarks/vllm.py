"""Output tokens per second of a real vLLM on CPU, directly and through the gateway, in turn. `make bench-vllm`.

The load generator is the one of `benchmarks.gateway`; it asks vLLM on its Unix socket, and the gateway (receipts and
access control on, no TLS) in front of the same vLLM. Nothing is pinned: vLLM, gateway and load share what cores there are.

    python -m benchmarks.vllm [--rounds 5] [--seconds 6]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import httpx

from benchmarks.contenders import CACHE, ROOT, Contender, Engine, SkippedError, build, ours
from enclave_server.engine.flags import command, environment
from enclave_server.model.manifest import read_manifest
from enclave_server.settings import Settings

MODELS = {"tiny": "tiny-random-llama", "SmolLM2-135M": "SmolLM2-135M-Instruct-Q4_1-dequantized"}
CONNECTIONS = (1, 8)
GOAL = 0.98
START_SECONDS = 300
WARM_UP = 0.3  # seconds that the load generator runs before its own clock starts
REQUEST = {
    "model": "mock",  # the name that `benchmarks.ours` serves
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
    "max_tokens": 128,
    "ignore_eos": True,
    "temperature": 0,
    "stream": True,
}


@contextmanager
def engine(model: Path, folder: Path) -> Iterator[Engine]:
    """vLLM with the flags and the environment that the gateway gives it, without the gateway's supervision."""
    settings = Settings.load(
        model_dir=model,
        model_name="mock",
        model_digest=read_manifest(model).digest().hex(),
        tee="simulated-tdx",
        engine_python=ROOT / ".venv-engine/bin/python",
        engine_dtype="float32",
        engine_max_model_len=512,
        engine_max_num_seqs=16,
        engine_kv_cache_memory="256M",
        engine_eager=True,
    )
    socket = folder / "vllm.sock"
    with (CACHE / "vllm.log").open("wb") as log:
        process = subprocess.Popen(
            command(settings, f"--uds={socket}"),
            env=environment(settings, folder),
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _healthy(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SkippedError("vLLM did not start; see .cache/bench/vllm.log")
            time.sleep(0.5)
        yield Engine(0, socket, process.pid)
    finally:
        process.terminate()
        process.wait(60)


def tokens_per_second(contender: Contender, connections: int, seconds: float, folder: Path) -> float:
    """Events of the streams that arrived in a run: one for each token, and as many others on either way."""
    body = folder / "body.json"
    body.write_text(json.dumps(REQUEST))
    arguments = [str(build("load")), contender.target, str(connections), str(seconds), str(body)]
    ran = subprocess.run(
        [*arguments, "/v1/chat/completions", *contender.headers], stdout=subprocess.PIPE, check=True
    )
    found = json.loads(ran.stdout)
    if found["errors"] or found["not_200"]:
        raise SkippedError(f"{contender.name}: {ran.stdout.decode()}")
    events: int = found["all_events"]
    return events / (seconds + WARM_UP)


def measure(model: Path, rounds: int, seconds: float) -> dict[str, dict[str, list[float]]]:
    """By connections and contender: tokens per second of every round."""
    found: dict[str, dict[str, list[float]]] = {str(n): {"direct": [], "ours": []} for n in CONNECTIONS}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as text,
        engine(model, folder := Path(text)) as vllm,
        ours(vllm, folder, pinned=False) as gateway,
    ):
        both = [Contender("direct", str(vllm.socket), None), gateway]
        tokens_per_second(gateway, 2, seconds, folder)
        for number in range(rounds):
            for connections in CONNECTIONS:
                for contender in both if number % 2 else both[::-1]:
                    rate = tokens_per_second(contender, connections, seconds, folder)
                    found[str(connections)][contender.name].append(rate)
    return found


def table(results: dict[str, dict[str, dict[str, list[float]]]], rounds: int) -> str:
    lines = [
        "# Tokens per second through the gateway",
        "",
        f"Made by `make bench-vllm` on {datetime.now(UTC):%Y-%m-%d}: vLLM on {os.cpu_count()} shared cores, float32, streams of 128 tokens,",
        f"medians of {rounds} interleaved rounds, Python {platform.python_version()}. The ratio is the median of the rounds' ratios.",
        "",
        "| model | connections | direct, tokens/s | through the gateway | ratio | goal |",
        "|---|---|---|---|---|---|",
    ]
    for model, by_connections in results.items():
        for connections, rates in by_connections.items():
            ratio = median(own / base for own, base in zip(rates["ours"], rates["direct"], strict=True))
            numbers = f"{median(rates['direct']):,.0f} | {median(rates['ours']):,.0f} | {ratio:.3f}"
            verdict = f"≥ {GOAL} {'met' if ratio >= GOAL else '**not met**'}"
            lines.append(f"| {model} | {connections} | {numbers} | {verdict} |")
    return "\n".join(lines) + "\n"


def _healthy(socket: Path) -> bool:
    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket))) as client:
            return client.get("http://engine/health").status_code == 200
    except httpx.TransportError:
        return False


def main(rounds: int, seconds: float) -> None:
    results = {}
    for name, folder in MODELS.items():
        print(f"→ {name}", file=sys.stderr)
        results[name] = measure(ROOT / ".cache/models" / folder, rounds, seconds)
    place = ROOT / "benchmarks/results"
    place.mkdir(exist_ok=True)
    (place / "vllm.json").write_text(json.dumps(results, indent=1) + "\n")
    text = table(results, rounds)
    (place / "vllm.md").write_text(text)
    print(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds)
