"""Output tokens per second of a real vLLM on CPU, directly and through the gateway, in turn. `make bench-vllm`.

    python -m benchmarks.vllm [--seconds 1350] [--model NAME] [--save]

What is measured is `enclave-server serve` as users run it (TLS, an API key, receipts, checkpoints) and the vLLM that it
started: the gateway over TCP, and the same vLLM process on its Unix socket, by one client that sends both the same
requests. A block is one stream on each connection, all begun at once, of a fixed number of tokens whatever they are, from
the first byte sent to the last one read. Blocks are of about a second, and their order is ABBA, so that what drifts
meets both ways alike; `balanced` says what is made of them. Every block is kept in the JSON.

The second direct block of a round against its first is told beside it: what the method finds where nothing is. So is the
gateway's CPU time for a token, which a neighbour hardly moves: had none of that work run beside vLLM's own, so much
would have been lost to it ("by CPU"; wake-ups and cold caches are not in it). Nothing is pinned but what vLLM and the
gateway pin themselves; the client, which stands for one on another machine, uses the cores that the gateway uses.

Each block is also told as if nothing rare had disturbed it (`streams.undisturbed`), which leaves out what is rare of the gateway, too.

Ends with status 1 when a whole interval is below the goal of a load that has one. `--save` writes results/vllm.md and
vllm.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from math import exp
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.balanced import Round, centre, rounds_for
from benchmarks.contenders import cpu_seconds
from benchmarks.paired import LEVEL, Found
from benchmarks.streams import LOSS, Load, Way, over_tls, over_unix
from tests.caller import untrusting
from tests.served import VLLM_SECONDS, Served, chat_model, model_settings, served, tiny_model, vllm_settings

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = 1350.0
KNOWN_SECONDS = 5  # until a new key is one: the gateway looks every 2 s


LOADS = (
    Load("SmolLM2-135M", 1, 16),
    Load("SmolLM2-135M", 8, 16),
    Load("tiny", 1, 128, 0.025, goal=None),
    Load("tiny", 8, 128, 0.025, goal=None),
)
MODELS = {"SmolLM2-135M": chat_model, "tiny": tiny_model}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was found of one load; of losses a tenth is 0.1."""

    load: Load
    rounds: list[Round]  # seconds of each block; A is direct
    undisturbed: list[Round]  # the same, as `streams.undisturbed` has them
    cpu: float  # seconds of the gateway's own processes for a token
    at_rest: float  # and in a second in which vLLM is asked directly
    others: float  # of the machine's cores: taken by what is none of this

    @property
    def loss(self) -> Found:
        return _lost(centre([one.slower for one in self.rounds]))

    @property
    def steps(self) -> Found:
        """The same of undisturbed blocks."""
        return _lost(centre([one.slower for one in self.undisturbed]))

    @property
    def control(self) -> Found:
        """The same for the second direct block against the first."""
        return _lost(centre([one.again for one in self.rounds]))

    @property
    def direct(self) -> float:
        """Tokens per second of all blocks together."""
        return self._rate([one.a for one in self.rounds])

    @property
    def gateway(self) -> float:
        return self._rate([one.b for one in self.rounds])

    @property
    def by_cpu(self) -> float:
        """What is lost when none of the gateway's work is beside vLLM's."""
        return 1 - 1 / (1 + self.direct * self.cpu)

    def verdict(self, of: Found) -> str:
        return "none" if self.load.goal is None else of.against(self.load.goal)

    @property
    def failed(self) -> bool:
        return any("not met" in self.verdict(of) for of in (self.loss, self.steps))

    def _rate(self, blocks: list[tuple[float, float]]) -> float:
        tokens = self.load.connections * self.load.tokens
        return 2 * len(blocks) * tokens / sum(map(sum, blocks))


def _lost(slower: Found) -> Found:
    """A logarithm of a factor as what is lost by it."""
    low, middle, high = (1 - exp(-one) for one in (slower.low, slower.median, slower.high))
    return Found(median=middle, low=low, high=high, rounds=slower.rounds)


def gateway_cpu(gateway: Served) -> float:
    """CPU time of the gateway's processes so far, without the engine's."""
    return cpu_seconds(gateway.process.pid, without=gateway.engine_pid())


def machine_cpu() -> float:
    """CPU time of everything on this machine so far, and what its host gave to others."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(load: Load, direct: Way, gateway: Way, pid: int, seconds: float) -> Result:
    """`pid` is the process above gateway and engine."""

    def others() -> float:
        return machine_cpu() - cpu_seconds(pid) - time.process_time()

    theirs, begun = others(), time.monotonic()
    rounds = rounds_for(seconds, partial(direct.block, load), partial(gateway.block, load))
    theirs, took = others() - theirs, time.monotonic() - begun
    count = 2 * len(rounds)
    return Result(
        load=load,
        rounds=rounds,
        undisturbed=in_order(rounds, direct.undisturbed[-count:], gateway.undisturbed[-count:]),
        cpu=median(gateway.spent[-count:]) / (load.connections * load.tokens),
        at_rest=sum(direct.spent[-count:]) / sum(sum(one.a) for one in rounds),
        others=max(0.0, theirs / took / (os.cpu_count() or 1)),
    )


def in_order(rounds: list[Round], a: list[float], b: list[float]) -> list[Round]:
    """Another number of the same blocks, each way's in the order they ran in."""
    pairs = zip(rounds, zip(a[::2], a[1::2], strict=True), zip(b[::2], b[1::2], strict=True), strict=True)
    return [Round(one.first, of_a, of_b) for one, of_a, of_b in pairs]


@contextmanager
def on_the_cores_of(pid: int) -> Iterator[None]:
    """Meanwhile this process uses the cores that another one uses."""
    given = os.sched_getaffinity(0)
    os.sched_setaffinity(0, os.sched_getaffinity(pid))
    try:
        yield
    finally:
        os.sched_setaffinity(0, given)


def measure_all(seconds: float, models: list[str]) -> list[Result]:
    results = []
    for name in models:
        with tempfile.TemporaryDirectory(prefix="bench-") as text:
            folder = Path(text)
            values: dict[str, Any] = {
                **vllm_settings(),
                **model_settings(MODELS[name](), name),
                "engine_kv_cache_memory": "256M",
                "runtime_dir": str(folder / "run"),
                "access": "keys",
            }
            with served(folder, seconds=VLLM_SECONDS, **values) as gateway:
                key = gateway.run("keys", "create", "benchmark").strip()
                time.sleep(KNOWN_SECONDS)
                straight = partial(over_unix, folder / "run/engine/vllm.sock")
                through = partial(over_tls, untrusting(), gateway.port)
                cpu, pid = partial(gateway_cpu, gateway), gateway.process.pid
                ways = Way(straight, key, cpu), Way(through, key, cpu)
                with on_the_cores_of(pid):
                    for load in [each for each in LOADS if each.model == name]:
                        results.append(measure(load, *ways, pid, seconds * load.weight))
                        print(line(results[-1]), file=sys.stderr, flush=True)
                gateway.terminate()
    return results


def kept(result: Result) -> dict[str, Any]:
    """Every block of it, and what was made of them."""
    found = {"loss": result.loss, "steps": result.steps, "control": result.control}
    made = {name: {**asdict(of), "verdict": result.verdict(of)} for name, of in found.items()}
    return {**asdict(result), "found": made}


def line(result: Result) -> str:
    load, of, steps = result.load, result.loss, result.steps
    columns = [
        load.model,
        f"{load.connections}",
        f"{result.direct:,.0f}",
        f"{result.gateway:,.0f}",
        f"{result.gateway / result.direct:.3f}",
        _ratio(of),
        result.verdict(of),
        _ratio(steps),
        result.verdict(steps),
        _ratio(result.control),
        f"{result.cpu * 1e6:.0f} µs",
        f"{1 - result.by_cpu:.3f}",
        f"{result.at_rest:.1%}",
        f"{result.others:.0%}",
        f"{of.rounds}",
    ]
    return f"| {' | '.join(columns)} |"


def _ratio(of: Found) -> str:
    return f"**{1 - of.median:.3f}** ({1 - of.high:.3f} … {1 - of.low:.3f})"


def table(results: list[Result]) -> str:
    head = [
        "# Tokens per second through the gateway",
        "",
        f"Made by `make bench-vllm` on {datetime.now(UTC):%Y-%m-%d}: vLLM on {os.cpu_count()} shared cores, float32, Python {platform.python_version()}. Tokens per second are those of all",
        'blocks together, and "in total" is their ratio, in which each disturbance counts for as long as it took. The ratio is the centre of the',
        f"rounds' ratios, with the interval that has the true one {LEVEL:.0%} of the time; the goal, at least {1 - LOSS:.2f}, counts as met when all of that interval is",
        'there. "Undisturbed" is the same of blocks in which each token but the first took what it does in the middle three quarters of the block\'s',
        'steps: the longest and the shortest eighth are in "ratio" and "in total" alone. "Direct again" is the same for vLLM against itself. "By CPU" is the ratio if each second of the gateway\'s CPU time held vLLM up for a',
        'second; what runs beside it costs less, wake-ups and cold caches more. "At rest" is the gateway\'s part of one core while vLLM is asked',
        'directly, "others" the part of all cores that went to what is none of this, or to other machines on the same host.',
        "",
        "| model | streams | direct, tokens/s | gateway | in total | ratio | goal | undisturbed | goal | direct again | CPU of the gateway for a token | by CPU | at rest | others | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each load that has a goal")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one")
    parser.add_argument("--save", action="store_true", help="keep what was found in benchmarks/results")
    arguments = parser.parse_args()
    results = measure_all(arguments.seconds, arguments.model or list(MODELS))
    text = table(results)
    print(text)
    if arguments.save:
        (RESULTS / "vllm.md").write_text(text)
        (RESULTS / "vllm.json").write_text(json.dumps([kept(one) for one in results], indent=1) + "\n")
    sys.exit(any(one.failed for one in results))


if __name__ == "__main__":
    main()
