"""What verification costs a client: our OpenAI class beside the bare one, over one gateway, in turn, in one run.

    python -m benchmarks.client [--rounds 30] [--save]

Both talk TLS to the real gateway, which runs in a process of its own in front of the tests' stand-in for the engine; the
bare client neither attests nor seals nor looks at a receipt. CPU time is that of this process alone. `--save` writes
results/client.md and client.json.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import openai

from client_sdk import OpenAI, Trust
from tests.caller import untrusting
from tests.processes import until
from tests.servers import MODEL, FakeEngine, live_gateway

RESULTS = Path(__file__).resolve().parent / "results"
CALLS, STREAMS, COLD = 20, 3, 2  # in each round
CHUNKS, PACE = (
    128,
    0.003,
)  # events of content in a stream, and seconds between them: enough that each is a read of its own
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "words " * 200}]}
Ways = dict[str, Callable[[], tuple[float, ...]]]


@dataclass(frozen=True)
class Goal:
    """What was measured, in which unit, and how much of it is allowed."""

    name: str
    unit: str
    limit: float


GOALS = (
    Goal("added CPU of a plain call, sealed", "ms", 1.0),
    Goal("added CPU of a plain call, pinned", "ms", 1.0),
    Goal("added CPU of a stream event, sealed", "µs", 20.0),
    Goal("added CPU of a stream event, pinned", "µs", 20.0),
    Goal("added time to a stream's first event, sealed", "ms", 1.0),
    Goal("added time to a stream's first event, pinned", "ms", 1.0),
    Goal("CPU of a cold attestation", "ms", 50.0),
)


def serve(folder: Path) -> None:
    """The gateway's process: says where it is, and ends with its standard input."""
    limits: dict[str, Any] = {"evidence_per_second": 50, "evidence_burst": 1000}
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, **limits) as gateway,
    ):
        engine.behaviour.chunks, engine.behaviour.text = CHUNKS, "text" * CHUNKS
        engine.behaviour.delay = PACE
        (folder / "policy.toml").write_text(gateway.policy_text)
        (folder / "origin").write_text(gateway.origin)
        sys.stdin.read()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The gateway's origin."""
    command = [sys.executable, "-m", "benchmarks.client", "--serve", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        try:
            until((folder / "origin").exists, 60)
            yield (folder / "origin").read_text()
        finally:
            running.terminate()


def plain(client: openai.OpenAI) -> tuple[float]:
    """Seconds of this process's CPU time for a plain call."""
    before = time.process_time()
    for _ in range(CALLS):
        client.chat.completions.create(**ASKED)
    return ((time.process_time() - before) / CALLS,)


def streamed(client: openai.OpenAI) -> tuple[float, float]:
    """Seconds of CPU time for an event, and seconds from the call to the first one."""
    before, started = time.process_time(), time.perf_counter()
    stream = client.chat.completions.create(stream=True, **ASKED)
    next(stream)
    first = time.perf_counter() - started
    events = 1 + sum(1 for _ in stream)
    return (time.process_time() - before) / events, first


def cold(policy: str, origin: str) -> float:
    """Seconds of CPU time from nothing to a verdict."""
    before = time.process_time()
    Trust(policy).verify(origin)
    return time.process_time() - before


@contextmanager
def clients(url: str, policy: str) -> Iterator[dict[str, openai.OpenAI]]:
    options: Any = {"base_url": url, "api_key": "none", "max_retries": 0}
    anybody = openai.DefaultHttpxClient(verify=untrusting(), trust_env=False)
    with (
        openai.OpenAI(http_client=anybody, **options) as bare,
        OpenAI(policy=policy, **options) as sealed,
        OpenAI(policy=policy, channel="pinned", **options) as pinned,
    ):
        yield {"bare": bare, "sealed": sealed, "pinned": pinned}


def added(ways: Ways, rounds: int) -> dict[str, tuple[float, ...]]:
    """By how much each way is above the bare client: the least of its rounds, less the least of the bare client's.

    Whatever else runs on the machine can only add to a round, and each way has its turn in every one of them.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    least = {name: tuple(map(min, zip(*each, strict=True))) for name, each in found.items()}
    bare = least["bare"]
    return {name: tuple(v - b for v, b in zip(values, bare, strict=True)) for name, values in least.items()}


def measure(origin: str, policy: str, rounds: int) -> dict[str, float]:
    results = {}
    with clients(f"{origin}/v1", policy) as each:
        calls = added({name: partial(plain, client) for name, client in each.items()}, rounds)
        events = added({name: partial(streamed, client) for name, client in each.items()}, STREAMS * rounds)
    for name in ("sealed", "pinned"):
        results[f"added CPU of a plain call, {name}"] = calls[name][0] * 1e3
        results[f"added CPU of a stream event, {name}"] = events[name][0] * 1e6
        results[f"added time to a stream's first event, {name}"] = events[name][1] * 1e3
    results["CPU of a cold attestation"] = min(cold(policy, origin) for _ in range(COLD * rounds)) * 1e3
    return results


HEAD = """# What verification costs a client

Made by `make bench-client` on {date}: the least of {rounds} interleaved rounds on {cores} shared cores, load {load:.1f}, Python {python}, openai {openai}.

The bare openai client and ours ask the same gateway in turn, over TLS, with a warm session. `sealed` is what ours does unless told otherwise: a seal, TLS pinned to the
attested key, and a receipt; `pinned` leaves the seal out. CPU time is that of the client's process alone, and what a stream costs as a whole is shared out among its {events}
events. A cold attestation fetches evidence with its collateral over TLS and verifies all of it.

| | measured | goal | |
|---|---|---|---|
"""


def report(results: dict[str, float], rounds: int) -> str:
    text = HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        rounds=rounds,
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        python=platform.python_version(),
        openai=openai.__version__,
        events=CHUNKS + 2,
    )
    for goal in GOALS:
        found = results[goal.name]
        met = "met" if found <= goal.limit else "**not met**"
        text += f"| {goal.name} | {found:.2f} {goal.unit} | ≤ {goal.limit:g} {goal.unit} | {met} |\n"
    return text


def main(rounds: int, save: bool) -> None:
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as origin:
        results = measure(origin, str(Path(name) / "policy.toml"), rounds)
    text = report(results, rounds)
    print(text)
    if save:
        (RESULTS / "client.md").write_text(text)
        (RESULTS / "client.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    serve(arguments.serve) if arguments.serve else main(arguments.rounds, arguments.save)
