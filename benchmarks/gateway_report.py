"""The numbers of `benchmarks.gateway` as JSON and as Markdown, with the goals beside them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

Results = dict[str, dict[str, dict[str, float]]]  # contender → load → number
OURS, NGINX, DIRECT, UNSIGNED = "ours", "nginx", "direct", "ours without checkpoints"
SEALED, TICKET, FLOOR = "ours sealed", "ours sealed, tickets", "floor"


@dataclass(frozen=True, slots=True)
class Goal:
    """A number that a round gives, and what it should be at most, or at least."""

    what: str
    limit: float
    of: Callable[[Results], float]
    at_least: bool = False

    def row(self, rounds: Sequence[Results]) -> str:
        try:
            found = median(self.of(results) for results in rounds)
        except KeyError as exc:
            return f"| {self.what} | {self._limit()} | – | not measured: no {exc.args[0]} |"
        met = found >= self.limit if self.at_least else found <= self.limit
        return f"| {self.what} | {self._limit()} | {found:.3g} | {'met' if met else '**not met**'} |"

    def _limit(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def _ratio(load: str, number: str, other: str, own: str = OURS) -> Callable[[Results], float]:
    return lambda results: results[own][load][number] / results[other][load][number]


def _added_ms(load: str, number: str) -> Callable[[Results], float]:
    return lambda results: (results[OURS][load][number] - results[DIRECT][load][number]) / 1000


GOALS = (
    Goal("CPU per plain request ÷ nginx, c16", 13, _ratio("plain c16", "cpu_s_per_1000", NGINX)),
    Goal("CPU per plain request ÷ vllm-router, c16", 3, _ratio("plain c16", "cpu_s_per_1000", "vllm-router")),
    Goal(
        "CPU per plain request ÷ the floor of Python, c16", 1.5, _ratio("plain c16", "cpu_s_per_1000", FLOOR)
    ),
    Goal(
        "CPU per sealed plain request ÷ nginx, c16", 20, _ratio("plain c16", "cpu_s_per_1000", NGINX, SEALED)
    ),
    Goal("the same with a ticket", 20, _ratio("plain c16", "cpu_s_per_1000", NGINX, TICKET)),
    Goal("requests/s ÷ LiteLLM proxy, c16", 30, _ratio("plain c16", "rps", "LiteLLM proxy"), at_least=True),
    Goal("added p50 of a plain answer, c1, ms", 0.30, _added_ms("plain c1", "p50")),
    Goal(
        "CPU per paced stream event without checkpoints ÷ nginx, c32",
        2.3,
        _ratio("paced c32", "cpu_us_per_event", NGINX, UNSIGNED),
    ),
    Goal("the same with checkpoints", 2.5, _ratio("paced c32", "cpu_us_per_event", NGINX)),
    Goal("added time to first event of a paced stream, c1, ms", 0.30, _added_ms("paced c1", "first50")),
    Goal("the same of a stream that comes at once", 0.30, _added_ms("stream c1", "first50")),
    Goal("failed requests, c64", 0, lambda results: results[OURS]["plain c64"]["failed"]),
)


_HEAD = """# The gateway beside others

Made by `make bench-gateway` on {date}: medians of {rounds} interleaved rounds on {cores} shared cores, Python {python}.
Engine and load generator are programs in C on one core; each gateway has one process on the other, without TLS. nginx and
ours reach the engine over its Unix socket, the others over TCP. A request has 1.9 KB, a plain answer 1.2 KB, a stream 128
events; "paced" is one event every 20 ms (4 of them in a stream at one connection, so that a round times some fifty first
events), the others come as fast as they are taken (meanwhile the engine keeps the load generator's core busy, which the
time to first event shows). Ours hashes and signs every answer. "Ours sealed" opens an X-Wing
seal and seals the answer; with tickets it opens what is sealed with one, as all of the SDK's requests but the first are, and each
answer brings another; "floor" is a Python program that does the least: it looks the API key up, peeks at the request, passes
it on, hashes both bodies and signs the protocol's receipt, without ASGI, limits, time-outs or strictness.

| goal | limit | found | |
|---|---|---|---|"""


def write_report(
    folder: Path,
    rounds: Sequence[Results],
    skipped: Mapping[str, str],
    workers: Sequence[Mapping[str, float]],
    loads: Sequence[str],
) -> str:
    """Write gateway.json and gateway.md; the text of the latter."""
    folder.mkdir(exist_ok=True)
    raw = {"rounds": rounds, "skipped": skipped, "workers": workers}
    (folder / "gateway.json").write_text(json.dumps(raw, indent=1) + "\n")
    text = _markdown(rounds, skipped, workers, loads)
    (folder / "gateway.md").write_text(text)
    return text


def _markdown(
    rounds: Sequence[Results],
    skipped: Mapping[str, str],
    workers: Sequence[Mapping[str, float]],
    loads: Sequence[str],
) -> str:
    scaling = median(found["2"] / found["1"] for found in workers)
    head = _HEAD.format(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        rounds=len(rounds),
        cores=os.cpu_count(),
        python=platform.python_version(),
    )
    verdict = "met" if scaling >= 1.7 else "**not met**"
    lines = [
        head,
        *(goal.row(rounds) for goal in GOALS),
        f"| requests/s of 2 workers ÷ 1, c64 | ≥ 1.7 | {scaling:.3g} | {verdict} |",
    ]
    for load in loads:
        lines += _table(rounds, load)
    lines += [f"Left out: {name}: {reason}." for name, reason in skipped.items()]
    return "\n".join(lines) + "\n"


def _table(rounds: Sequence[Results], load: str) -> list[str]:
    """One load: a row for each contender, in order of its CPU time."""
    rows = []
    for name in rounds[0]:
        if DIRECT not in rounds[0] or load not in rounds[0][name]:
            continue
        taken = [(results[name][load], results[DIRECT][load]) for results in rounds]
        rps, cpu, event = (median(own[key] for own, _ in taken) for key in _KEYS)
        added = [
            median(own[key] - base[key] for own, base in taken) / 1000 for key in ("p50", "p99", "first50")
        ]
        cells = [f"{rps:,.0f}", f"{added[0]:.3g}", f"{added[1]:.3g}"]
        if not load.startswith("plain"):
            cells.append(f"{added[2]:.3g}")
        cells.append(f"{cpu:.3g}")
        if not load.startswith("plain"):
            cells.append(f"{event:.3g}")
        failed = sum(own["failed"] for own, _ in taken)
        label = f"{name} ({failed:.0f} failed)" if failed else name
        rows.append((cpu, f"| {label} | " + " | ".join(cells) + " |"))
    head = ["requests/s", "added p50 ms", "added p99 ms", "CPU s / 1000 requests"]
    if not load.startswith("plain"):
        head = [*head[:3], "added first event ms", head[3], "CPU µs / event"]
    if not rows:
        return []
    return ["", f"## {load}", "", f"| | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"] + [
        row for _, row in sorted(rows)
    ]


_KEYS = ("rps", "cpu_s_per_1000", "cpu_us_per_event")
