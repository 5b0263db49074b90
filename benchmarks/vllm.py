"""Output tokens per second of a real vLLM on CPU, directly and through the gateway, in turn. `make bench-vllm`.

    python -m benchmarks.vllm [--rounds 50] [--save]

What is measured is `enclave-server serve` as users run it (TLS, an API key, receipts, checkpoints) and the vLLM that it
started: the gateway over TCP, and the same vLLM process on its Unix socket, by one client that sends both the same
requests. A block is one stream on each connection, all begun at once, of a fixed number of tokens whatever they are. A
round has three blocks within seconds of each other, in an order that goes round: directly, through the gateway, and directly
once more. What is told is how much less than the mean of the round's two direct blocks the gateway passed on; `paired` says with
which interval, and when the goal counts as met. The second direct block against the first shows what the method finds
where nothing is. Nothing is pinned: vLLM, gateway and client share what cores there are.

The gateway's CPU time for each token is counted beside it, which a neighbour hardly moves: had none of that work run
beside vLLM's own, so much would have been lost to it ("by CPU"; wake-ups and cold caches are not in it).

Ends with status 1 when a goal is not met. `--save` writes results/vllm.md and vllm.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, cast

from benchmarks.contenders import cpu_seconds
from benchmarks.paired import LEVEL, Found, found, rounds_of
from tests.caller import untrusting
from tests.served import VLLM_SECONDS, Served, chat_model, model_settings, served, tiny_model, vllm_settings

RESULTS = Path(__file__).resolve().parent / "results"
LOSS = 0.02  # the goal: no more than this is lost
ROUNDS = 50
KNOWN_SECONDS = 5  # until a new key is one: the gateway looks every 2 s
PATIENCE = 120  # seconds for the next bytes
_DIRECT, _OURS, _AGAIN = "direct", "gateway", "direct again"
_END = b"\r\n0\r\n\r\n"  # of a chunked body whose content has no CR


@dataclass(frozen=True)
class Load:
    """So many streams at once of so many tokens, `weight` times as many rounds as were asked for."""

    model: str
    connections: int
    tokens: int
    weight: int = 1


LOADS = (
    Load("SmolLM2-135M", 1, 32),
    Load("SmolLM2-135M", 8, 32),
    Load("tiny", 1, 128, 2),
    Load("tiny", 8, 128, 2),
)
MODELS = {"SmolLM2-135M": chat_model, "tiny": tiny_model}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was found of one load; of losses a tenth is 0.1."""

    load: Load
    direct: float  # tokens per second, medians
    gateway: float
    loss: Found
    control: Found  # the same for the second direct block against the first
    cpu: float  # seconds of the gateway's own processes for a token
    seconds: list[dict[str, float]]  # of each block of each round

    @property
    def by_cpu(self) -> float:
        """What is lost when none of the gateway's work is beside vLLM's."""
        return 1 - 1 / (1 + self.direct * self.cpu)


class Way:
    """One way to the engine: how it is reached, and the request as it is sent.

    `spent` is the CPU time of each block so far, of what `cpu` counts."""

    def __init__(self, dial: Callable[[], socket.socket], key: str, cpu: Callable[[], float] = float) -> None:
        self._dial, self._key, self._cpu = dial, key, cpu
        self.spent: list[float] = []

    def block(self, load: Load) -> float:
        """Seconds from the first byte sent to the last one of the last answer. Connections are new, and made before."""
        request = self._request(load)
        with ExitStack() as stack:
            answers = {stack.enter_context(self._dial()): bytearray() for _ in range(load.connections)}
            selector = stack.enter_context(selectors.DefaultSelector())
            cpu, begun = self._cpu(), time.perf_counter()
            for connection in answers:
                connection.sendall(request)
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
            _read_all(selector, answers)
            took = time.perf_counter() - begun
            self.spent.append(self._cpu() - cpu)
        counted = b'"completion_tokens":%d' % load.tokens
        for answer in answers.values():
            if not answer.startswith(b"HTTP/1.1 200") or counted not in answer:
                raise ValueError(f"not an answer of {load.tokens} tokens: {bytes(answer[:300])!r}")
        return took

    def _request(self, load: Load) -> bytes:
        asked = {
            "model": load.model,
            "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
            "max_tokens": load.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(asked).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _read_all(selector: selectors.BaseSelector, answers: dict[socket.socket, bytearray]) -> None:
    while selector.get_map():
        ready = selector.select(PATIENCE)
        if not ready:
            raise TimeoutError(f"no bytes for {PATIENCE} s")
        for one, _ in ready:
            connection = cast(socket.socket, one.fileobj)
            if _read(connection, answers[connection]):
                selector.unregister(connection)


def _read(connection: socket.socket, answer: bytearray) -> bool:
    """Take what has come; whether that was the end."""
    try:
        while data := connection.recv(65536):
            answer += data
    except (BlockingIOError, ssl.SSLWantReadError):
        return answer.endswith(_END)
    raise ConnectionError(f"closed after {len(answer)} bytes: {bytes(answer[:300])!r}")


def over_unix(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


def over_tls(context: ssl.SSLContext, port: int) -> socket.socket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10))


def gateway_cpu(gateway: Served) -> float:
    """CPU time of the gateway's processes so far, without the engine's."""
    return cpu_seconds(gateway.process.pid, without=gateway.engine_pid())


def measure(load: Load, direct: Way, gateway: Way, rounds: int) -> Result:
    straight, through = partial(direct.block, load), partial(gateway.block, load)
    seen = rounds_of({_DIRECT: straight, _OURS: through, _AGAIN: straight}, rounds * load.weight)
    tokens = load.connections * load.tokens
    base = [mean((one[_DIRECT], one[_AGAIN])) for one in seen]
    return Result(
        load=load,
        direct=tokens / median(base),
        gateway=tokens / median(one[_OURS] for one in seen),
        loss=found([1 - straight / one[_OURS] for straight, one in zip(base, seen, strict=True)]),
        control=found([1 - one[_DIRECT] / one[_AGAIN] for one in seen]),
        cpu=median(gateway.spent[-len(seen) :]) / tokens,
        seconds=seen,
    )


def measure_all(rounds: int, models: list[str]) -> list[Result]:
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
                ways = Way(straight, key), Way(through, key, partial(gateway_cpu, gateway))
                for load in LOADS:
                    if load.model == name:
                        results.append(measure(load, *ways, rounds))
                        print(line(results[-1]), file=sys.stderr, flush=True)
                gateway.terminate()
    return results


def line(result: Result) -> str:
    load, of = result.load, result.loss
    columns = [
        load.model,
        f"{load.connections}",
        f"{result.direct:,.0f}",
        f"{result.gateway:,.0f}",
        f"**{1 - of.median:.3f}** ({1 - of.high:.3f} … {1 - of.low:.3f})",
        of.against(LOSS),
        f"{1 - result.control.median:.3f} ({1 - result.control.high:.3f} … {1 - result.control.low:.3f})",
        f"{result.cpu * 1e6:.0f} µs",
        f"{1 - result.by_cpu:.3f}",
        f"{of.rounds}",
    ]
    return f"| {' | '.join(columns)} |"


def table(results: list[Result]) -> str:
    head = [
        "# Tokens per second through the gateway",
        "",
        f"Made by `make bench-vllm` on {datetime.now(UTC):%Y-%m-%d}: vLLM on {os.cpu_count()} shared cores, float32, Python {platform.python_version()}. The ratio is the median of the rounds'",
        f"ratios, with the interval that has the true one {LEVEL:.0%} of the time; the goal, at least {1 - LOSS:.2f}, counts as met when all of that interval is",
        'there. "Direct again" is the same for vLLM against itself. "By CPU" is the ratio if each second of the gateway\'s CPU time held vLLM up',
        "for a second; what runs beside it costs less, wake-ups and cold caches more.",
        "",
        "| model | streams | direct, tokens/s | gateway | ratio | goal | direct again | CPU of the gateway for a token | by CPU | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(line, results)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--model", action="append", choices=list(MODELS), help="only this one")
    parser.add_argument("--save", action="store_true", help="keep what was found in benchmarks/results")
    arguments = parser.parse_args()
    results = measure_all(arguments.rounds, arguments.model or list(MODELS))
    text = table(results)
    print(text)
    if arguments.save:
        (RESULTS / "vllm.md").write_text(text)
        (RESULTS / "vllm.json").write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    sys.exit(any("not" in one.loss.against(LOSS) for one in results))


if __name__ == "__main__":
    main()
