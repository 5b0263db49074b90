"""What the local proxy adds: plain answers and streams, taken in turn in three ways, in one run.

    python -m benchmarks.proxy [--rounds 7] [--requests 60]

bare   httpx over TLS to the gateway, verifying nothing
sdk    httpx over the attested transport
proxy  bare httpx to `attested proxy` on loopback, which verifies

Gateway and engine (the tests' stand-in), proxy and caller are processes of their own. Every way has its turn in every
round, so that a busy machine slows all alike; what to look at are differences.
"""

from __future__ import annotations

import argparse
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from client_sdk import attested_transport
from tests.processes import until
from tests.servers import MODEL, FakeEngine, free_port, live_gateway

EVENTS = 500
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "words " * 300}]}


def serve(folder: Path) -> None:
    """The gateway's process: says where it is, and ends with its standard input."""
    with FakeEngine(folder / "engine.sock") as engine, live_gateway(folder, engine=engine) as gateway:
        engine.behaviour.chunks, engine.behaviour.text = EVENTS, "text" * EVENTS
        (folder / "policy.toml").write_text(gateway.policy_text)
        (folder / "origin").write_text(gateway.origin)
        sys.stdin.read()


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its standard input does, or when it is told to."""
    running = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield running
    finally:
        running.terminate()
        running.wait(20)


@contextmanager
def ways(folder: Path) -> Iterator[dict[str, httpx.Client]]:
    """A warm client for each way."""
    port = free_port()
    command = "from client_sdk.cli import main; main()"
    with ExitStack() as stack:
        stack.enter_context(process("-m", "benchmarks.proxy", "--serve", str(folder)))
        until((folder / "origin").exists, 60)
        origin, policy = (folder / "origin").read_text(), folder / "policy.toml"
        stack.enter_context(
            process("-c", command, "proxy", origin, "--policy", str(policy), "--port", str(port))
        )
        until(lambda: _listens(port), 60)
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        clients = {
            "bare": httpx.Client(base_url=origin, verify=anybody, trust_env=False),
            "sdk": httpx.Client(base_url=origin, transport=attested_transport(policy), trust_env=False),
            "proxy": httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False),
        }
        yield {name: stack.enter_context(client) for name, client in clients.items()}


def _listens(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/status.json", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def plain(client: httpx.Client, count: int) -> float:
    """The median time of an answer, in seconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        client.post(CHAT, json=ASKED).raise_for_status()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def first_event(client: httpx.Client, count: int) -> float:
    """The median time to the first bytes of a stream, in seconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        with client.stream("POST", CHAT, json={**ASKED, "stream": True}) as response:
            parts = response.iter_raw()
            next(parts)
            times.append(time.perf_counter() - start)
            for _ in parts:
                pass
    return statistics.median(times)


def event(client: httpx.Client, _: int) -> float:
    """The time of an event among events that come as fast as they can, in seconds."""
    with client.stream("POST", CHAT, json={**ASKED, "stream": True}) as response:
        parts = response.iter_raw()
        next(parts)
        start = time.perf_counter()
        for _part in parts:
            pass
    return (time.perf_counter() - start) / EVENTS


def main(rounds: int, requests: int) -> None:
    measured: dict[str, tuple[Callable[[httpx.Client, int], float], int]] = {
        "plain answer": (plain, requests),
        "first event": (first_event, 3),
        "each event": (event, 1),
    }
    with tempfile.TemporaryDirectory() as name, ways(Path(name)) as clients:
        for what, (measure, count) in measured.items():
            found: dict[str, list[float]] = {way: [] for way in clients}
            for client in clients.values():
                measure(client, 1)
            for _ in range(rounds):
                for way, client in clients.items():
                    found[way].append(measure(client, count) * 1e6)
            for way, times in found.items():
                more = statistics.median(t - b for t, b in zip(times, found["bare"], strict=True))
                print(f"{what:14} {way:6} {statistics.median(times):9.0f} µs   {more:+8.0f} µs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    else:
        main(arguments.rounds, arguments.requests)
