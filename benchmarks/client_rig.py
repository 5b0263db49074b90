"""What the client's benchmark stands on: a real gateway in a process of its own, and the three clients that ask it.

`python -m benchmarks.client_rig FOLDER` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2
import openai

from client_sdk import OpenAI
from tests.caller import untrusting
from tests.fake_engine import Behaviour
from tests.processes import until
from tests.servers import FakeEngine, live_gateway

Clients = dict[str, openai.OpenAI]


def serve(folder: Path) -> None:
    """The gateway's process: says where it is, has the engine behave as it is told, and ends with its standard input."""
    limits: dict[str, Any] = {"evidence_per_second": 50, "evidence_burst": 1000}
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, **limits) as gateway,
    ):
        (folder / "policy.toml").write_text(gateway.policy_text)
        (folder / "origin").write_text(gateway.origin)
        for line in sys.stdin:
            engine.behaviour = Behaviour(**json.loads(line))
            sys.stdout.write("told\n")
            sys.stdout.flush()


@dataclass(frozen=True)
class Server:
    """The gateway, seen from here."""

    origin: str
    policy: str
    tell: IO[str]
    told: IO[str]

    def streams(self, events: int, pace: float = 0.0) -> None:
        """How streams are from now on."""
        behaviour = {"chunks": events, "text": "text" * events, "delay": pace}
        self.tell.write(json.dumps(behaviour) + "\n")
        self.tell.flush()
        self.told.readline()


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "benchmarks.client_rig", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        if running.stdin is None or running.stdout is None:
            raise RuntimeError("both are pipes")
        try:
            until((folder / "origin").exists, 60)
            origin, policy = (folder / "origin").read_text(), str(folder / "policy.toml")
            yield Server(origin, policy, running.stdin, running.stdout)
        finally:
            running.terminate()


class _Kept(httpx2.SyncByteStream):
    """A stream that is read to its end when it is closed, as ours are: else its connection would not serve again."""

    def __init__(self, stream: Any) -> None:
        self._stream: Any = stream
        self._reads: Iterator[bytes] = iter(stream)

    def __iter__(self) -> Iterator[bytes]:
        return self._reads

    def close(self) -> None:
        for _ in self._reads:
            pass
        self._stream.close()


def _keep(response: Any) -> None:
    response.stream = _Kept(response.stream)


@contextmanager
def clients(server: Server) -> Iterator[Clients]:
    options: Any = {"base_url": f"{server.origin}/v1", "api_key": "none", "max_retries": 0}
    hooks: Any = {"response": [_keep]}
    anybody = openai.DefaultHttpxClient(verify=untrusting(), trust_env=False, event_hooks=hooks)
    with (
        openai.OpenAI(http_client=anybody, **options) as bare,
        OpenAI(policy=server.policy, **options) as sealed,
        OpenAI(policy=server.policy, channel="pinned", **options) as pinned,
    ):
        yield {"bare": bare, "sealed": sealed, "pinned": pinned}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
