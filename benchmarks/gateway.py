"""What the gateway costs: requests, latency and CPU beside other gateways, in one run. `make bench-gateway`.

One mock engine and one load generator share a core, the contender has another. Every round measures every contender under
every load, in turn and in reverse order every second round, so that a busy machine slows all alike; what counts is the
median of the rounds. CPU time per request is the steady number; requests per second and p99 follow the machine's mood.

    python -m benchmarks.gateway [--rounds 3] [--seconds 1.0] [--only nginx,ours]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import (
    CONTENDERS,
    ENGINE_CPU,
    EVENTS,
    ROOT,
    Contender,
    Engine,
    SkippedError,
    build,
    mock_engine,
    ours,
)
from benchmarks.further import floor, sealed_ours, ticket_ours
from benchmarks.gateway_report import Results, write_report

PACE_US = 20_000
PACED_SECONDS = 5.0  # a paced stream of 128 events takes 2.6 s, one of 4 takes 0.1 s
MESSAGES = [{"role": "user", "content": "words " * 300}]  # a request of 1.9 KB


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load. `pace`: microseconds between a stream's events."""

    name: str
    stream: bool
    connections: int
    pace: int = 0
    events: int = EVENTS


LOADS = (
    *(Load(f"plain c{n}", False, n) for n in (1, 16, 64)),
    *(Load(f"stream c{n}", True, n) for n in (1, 16, 64)),
    Load("paced c1", True, 1, PACE_US, events=4),  # short, so that many first events are timed
    Load("paced c32", True, 32, PACE_US),
)


OWN = {"ours sealed": sealed_ours, "ours sealed, tickets": ticket_ours, "floor": floor}
WARM_UP = Load("warm-up", False, 4)


def measure(contender: Contender, load: Load, folder: Path, seconds: float) -> dict[str, float]:
    """One run of the load generator against one contender; a longer one when no answer came in the time."""
    body = folder / "request"
    asked = {"model": "mock", "messages": MESSAGES, "stream": load.stream}
    body.write_bytes(contender.seal(json.dumps(asked).encode()))
    for longer in (1, 4, 16):
        command = [
            str(build("load")),
            contender.target,
            str(load.connections),
            str(longer * seconds),
            str(body),
        ]
        found = run_load([*command, contender.path, *contender.headers], contender)
        if found["all_requests"] and found["p50"]:
            return found
    raise SkippedError(f"{contender.name} answered nothing: {load.name}")


def run_load(command: Sequence[str], contender: Contender) -> dict[str, float]:
    """What the load generator says, and the CPU time that the contender took meanwhile."""
    before = contender.cpu_seconds()
    pinned = ["taskset", "-c", str(ENGINE_CPU), *command]
    ran = subprocess.run(pinned, stdout=subprocess.PIPE, check=True)
    cpu = contender.cpu_seconds() - before
    found: dict[str, float] = json.loads(ran.stdout)
    found["failed"] = found["errors"] + found["not_200"]
    found["cpu_s_per_1000"] = 1000 * cpu / max(1, found["all_requests"])
    found["cpu_us_per_event"] = 1e6 * cpu / max(1, found["all_events"])
    return found


def run_round(contenders: Sequence[Contender], engine: Engine, folder: Path, seconds: float) -> Results:
    """Every contender under every load, once."""
    results: Results = {contender.name: {} for contender in contenders}
    for load in LOADS:
        engine.pace(load.pace, load.events)
        for contender in contenders:
            if load.stream and not contender.streams:
                continue
            length = PACED_SECONDS if load.pace else seconds
            results[contender.name][load.name] = measure(contender, load, folder, length)
    engine.pace(0)
    return results


def workers_round(engine: Engine, folder: Path, seconds: float) -> dict[str, float]:
    """Requests per second of one worker and of two, each free to use any core, at 64 connections."""
    found = {}
    for workers in (1, 2):
        with ours(engine, folder, workers=workers, pinned=False) as contender:
            found[str(workers)] = measure(contender, LOADS[2], folder, seconds)["rps"]
    return found


def main(rounds: int, seconds: float, only: Sequence[str]) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(mock_engine(folder))
        contenders: list[Contender] = []
        skipped: dict[str, str] = {}
        for name, start in {**CONTENDERS, **OWN}.items():
            if only and name not in only:
                continue
            try:
                contender = stack.enter_context(start(engine, folder))
                measure(contender, WARM_UP, folder, 2.0)
                contenders.append(contender)
            except SkippedError as exc:
                skipped[name] = str(exc)
        found = []
        for number in range(rounds):
            print(f"→ round {number + 1} of {rounds}", file=sys.stderr)
            order = contenders if number % 2 == 0 else contenders[::-1]
            found.append(run_round(order, engine, folder, seconds))
    with tempfile.TemporaryDirectory() as text, mock_engine(Path(text)) as engine:
        workers = [workers_round(engine, Path(text), seconds) for _ in range(rounds)]
    print(write_report(ROOT / "benchmarks/results", found, skipped, workers, [load.name for load in LOADS]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.seconds, arguments.only)
