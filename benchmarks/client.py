"""What verification costs a client: our OpenAI class beside the bare one, over one gateway, in turn, in one run.

    python -m benchmarks.client [--rounds 50] [--save]

All talk TLS to the real gateway, which runs in a process of its own in front of the tests' stand-in for the engine; the
bare client neither attests nor seals nor looks at a receipt. CPU time is that of this process's one thread. How it is
compared, and when a goal counts as met, is told in `paired`. Ends with status 1 when a goal is not met. `--save` writes
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
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import openai

from benchmarks.client_rig import Clients, Server, clients, served
from benchmarks.paired import LEVEL, Found, added, found, in_turn, rounds_of, steady
from client_sdk import Trust
from tests.servers import MODEL

RESULTS = Path(__file__).resolve().parent / "results"
CALLS = 5  # of a way in each round of plain calls
ASKED: Any = {"model": MODEL, "messages": [{"role": "user", "content": "words " * 200}]}
Rounds = list[dict[str, float]]


@dataclass(frozen=True)
class Shape:
    """Streams as they are measured: three at once, one for each way, read in turn by so many events."""

    events: int
    pace: float  # seconds between events, so that each is written by itself
    settle: float  # seconds until all have arrived, so that the gateway rests beside what is measured
    block: int


# a sealed event takes twice an unsealed one's bytes: 200 of them fill a socket's buffer to the brim
SHAPE = Shape(events=100, pace=0.0005, settle=0.4, block=10)


@dataclass(frozen=True)
class Goal:
    """What was measured, in which unit, and how much of it is allowed."""

    name: str
    unit: str
    limit: float


GOALS = (
    Goal("plain call", "ms", 1.0),
    Goal("stream event", "µs", 20.0),
    Goal("streamed call beside its events", "ms", 1.0),
    Goal("time to a stream's first event", "ms", 1.0),
    Goal("cold attestation", "ms", 50.0),
)
FACTOR = {"ms": 1e3, "µs": 1e6}


# --------------------------------------------------------------------------------------------------- measuring


def plain(client: openai.OpenAI) -> float:
    """Seconds of CPU time for a plain call."""
    before = time.thread_time()
    for _ in range(CALLS):
        client.chat.completions.create(**ASKED)
    return (time.thread_time() - before) / CALLS


def first(client: openai.OpenAI) -> float:
    """Seconds from a call to the first event of its stream."""
    started = time.perf_counter()
    with client.chat.completions.create(stream=True, **ASKED) as stream:
        next(stream)
        took = time.perf_counter() - started
        for _ in stream:
            pass
    return took


@dataclass
class Reading:
    """One of the streams that are open at once; `spent` is CPU time for its events, `beside` that for the rest of it."""

    stream: openai.Stream[Any]
    beside: float
    spent: float = 0.0

    @classmethod
    def begin(cls, client: openai.OpenAI) -> Reading:
        before = time.thread_time()
        stream = client.chat.completions.create(stream=True, **ASKED)
        next(stream)  # the one with the role
        return cls(stream, time.thread_time() - before)

    def read(self, events: int) -> None:
        before = time.thread_time()
        for _ in range(events):
            next(self.stream)
        self.spent += time.thread_time() - before

    def end(self) -> None:
        before = time.thread_time()
        for _ in self.stream:  # the reason why it ended
            pass
        self.beside += time.thread_time() - before


def streamed(each: Clients, number: int) -> tuple[dict[str, float], dict[str, float]]:
    """One round: seconds of CPU time for an event, and for all else of the call."""
    readings: dict[str, Reading] = {}
    with ExitStack() as streams:
        for name in in_turn(list(each), number):
            readings[name] = Reading.begin(each[name])
            streams.enter_context(readings[name].stream)
        time.sleep(SHAPE.settle)
        for block in range(SHAPE.events // SHAPE.block):
            for name in in_turn(list(each), number + block):
                readings[name].read(SHAPE.block)
        for name in in_turn(list(each), number):
            readings[name].end()
    events = {name: reading.spent / SHAPE.events for name, reading in readings.items()}
    return events, {name: reading.beside for name, reading in readings.items()}


def streams(server: Server, each: Clients, count: int) -> tuple[Rounds, Rounds]:
    server.streams(SHAPE.events, SHAPE.pace)
    rounds = [streamed(each, number) for number in range(count + 1)][1:]
    return [events for events, _ in rounds], [beside for _, beside in rounds]


def cold(server: Server) -> float:
    """Seconds of CPU time from a policy's path to a verdict, in a process that has done nothing but import."""
    command = [sys.executable, "-m", "benchmarks.client", "--cold", server.policy, server.origin]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def attest(policy: str, origin: str) -> None:
    before = time.process_time()
    Trust(policy).verify(origin)
    sys.stdout.write(str(time.process_time() - before))


def measure(server: Server, rounds: int) -> dict[str, dict[str, Found]]:
    """For each goal the ways that it is for."""
    with clients(server) as each, steady():
        server.streams(1)
        ways: dict[str, Callable[[], float]] = {n: partial(plain, client) for n, client in each.items()}
        calls = added(rounds_of(ways, 3 * rounds, 5), "bare")
        server.streams(3)
        ways = {n: partial(first, client) for n, client in each.items()}
        firsts = added(rounds_of(ways, 3 * rounds, 5), "bare")
        events, beside = streams(server, each, 3 * rounds)
    by_way = [calls, added(events, "bare"), added(beside, "bare"), firsts]
    colds = {"": found([cold(server) for _ in range(max(8, rounds // 4))])}
    measured = zip(GOALS, [*by_way, colds], strict=True)
    return {
        goal.name: {name: of.times(FACTOR[goal.unit]) for name, of in ways.items()} for goal, ways in measured
    }


# --------------------------------------------------------------------------------------------------- reporting

HEAD = """# What verification costs a client

Made by `make bench-client` on {date}, on {cores} shared cores, load {before:.1f} at its start and {after:.1f} at its end, Python {python}, openai {openai}.

The bare openai client and ours ask the same gateway over TLS, with a warm session. `sealed` is what ours does unless told otherwise: a seal, TLS pinned to the attested
key, and a receipt; `pinned` leaves the seal out. The bare client is made to read its streams to their last byte too, where it would make a new connection for each. In each round all three have their turn, and what ours takes more than the bare one in that round is one value: told are the median of these
and the interval that has the true one {level:.0%} of the time. A goal is *met* when the whole interval is within it, *not met* when none of it is, and *undecided* in between.

CPU time is that of the client's thread; the gateway has a process of its own. Three streams of {events} events are open at once, one of each kind. Each event is written by itself, and when all have arrived, so
that the gateway rests, they are read in turn, {block} of each; ours takes from the kernel all that is there (ADR 46), the bare client event by event. What a streamed call takes
beside its events is all up to the first one, and its end with the receipt. A cold attestation, in a process that has just started, reads a policy, fetches evidence with its collateral over TLS and verifies it.

| added by verification | | bare | median | {level:.0%} interval | goal | | rounds |
|---|---|---|---|---|---|---|---|
"""


def report(results: dict[str, dict[str, Found]], load: float) -> str:
    text = HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        cores=os.cpu_count(),
        before=load,
        after=os.getloadavg()[0],
        python=platform.python_version(),
        openai=openai.__version__,
        level=LEVEL,
        events=SHAPE.events,
        block=SHAPE.block,
    )
    for goal in GOALS:
        for way, of in results[goal.name].items():
            bare = f"{of.base:.2f} {goal.unit}" if way else ""
            text += f"| {goal.name} | {way} | {bare} | {of.median:.2f} {goal.unit} | {of.low:.2f} to {of.high:.2f} "
            text += f"| ≤ {goal.limit:g} {goal.unit} | {of.against(goal.limit)} | {of.rounds} |\n"
    return text


def main(rounds: int, save: bool) -> int:
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as server:
        results = measure(server, rounds)
    text = report(results, load)
    print(text)
    if save:
        (RESULTS / "client.md").write_text(text)
        values = {name: {way: asdict(of) for way, of in ways.items()} for name, ways in results.items()}
        (RESULTS / "client.json").write_text(json.dumps(values, indent=1) + "\n")
    return int("not met" in text.partition("|---|")[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--cold", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cold:
        attest(*arguments.cold)
    else:
        sys.exit(main(arguments.rounds, arguments.save))
