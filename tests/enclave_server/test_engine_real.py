"""Real vLLM that somebody else runs, started with the commands that `enclave-server engine command` prints: on a socket, on
a port, and as two replicas behind vLLM's router. Killed without a word, and come back.

The router is found on PATH, or in the environment that `make bench-gateway` makes; without one its test is skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from attestation.binding import Topology
from attestation.receipt import Outcome
from client_sdk import OpenAI
from tests.caller import Answer, Caller
from tests.processes import running_with, until
from tests.served import COMMAND, VLLM_SECONDS, Served, engine_python, served, vllm_settings
from tests.servers import free_port

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(5 * VLLM_SECONDS)]

ROOT = Path(__file__).resolve().parent.parent.parent
CANARY = "Canary7e20Xyzzy"


class Operator:
    """Runs what the project printed, as a shell would, in a session of its own."""

    def __init__(self, folder: Path, values: dict[str, Any], *programs: Path) -> None:
        self.values = {**vllm_settings(), "runtime_dir": folder, **values}
        del self.values["engine_python"]  # the gateway starts none
        self.log = folder / "engine.log"
        self._folder, self._programs = folder, programs

    def start(self) -> None:
        path = os.pathsep.join([*(str(program.parent) for program in self._programs), os.environ["PATH"]])
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-e"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={"PATH": path},
                cwd=self._folder,
                start_new_session=True,
            )
        assert self.process.stdin is not None
        self.process.stdin.write(self.commands().encode())
        self.process.stdin.close()

    def commands(self) -> str:
        with TemporaryDirectory() as folder:
            config = Served(Path(folder), self.values).config
            command = [*COMMAND, "engine", "command", "--config", str(config)]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout

    def kill(self) -> None:
        """All of it at once, with what it left running."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        until(lambda: not running_with(f"HOME={self._folder}"))


@contextmanager
def run_by(operator: Operator, folder: Path, **values: Any) -> Iterator[Served]:
    """A gateway before that engine, which waits until it is there."""
    operator.start()
    try:
        with served(
            folder, seconds=3 * VLLM_SECONDS, **operator.values, drain_seconds=5, **values
        ) as gateway:
            yield gateway
    except BaseException:
        sys.stderr.write(operator.log.read_text(errors="replace")[-4000:])
        raise
    finally:
        operator.kill()


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory with a short name, for sockets."""
    with TemporaryDirectory(prefix="op-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.parametrize("kind", ["socket", "port"])
def test_an_engine_that_runs_already(kind: str, place: Path, tmp_path: Path) -> None:
    """Verified chat and stream with the SDK; killed in mid-stream; the same answers and the same keys when it is back."""
    address = f"http+unix://{place}/vllm.sock" if kind == "socket" else f"http://127.0.0.1:{free_port()}"
    operator = Operator(place, {"engine": address}, engine_python())
    with run_by(operator, tmp_path) as gateway, Caller(gateway.origin, gateway.policy()) as caller:
        said = caller.verdict.statement.engine
        assert said.topology is not None
        assert said.topology.external
        assert said.version[0].isdecimal()
        assert said.flags == ()
        before = with_the_sdk(gateway, tmp_path)
        story = {"model": "tiny", "prompt": "once", "n": 8, "max_tokens": 480, "stream": True}
        answer = caller.watch("/v1/completions", {**story, "ignore_eos": True}, operator.kill)
        assert (answer.status, answer.outcome) == (200, Outcome.ABORTED)
        until(lambda: not gateway.ready())
        refused = caller.chat("hello?", max_tokens=4)
        assert (refused.status, refused.error, refused.outcome) == (503, "engine_unavailable", Outcome.ERROR)
        assert refused.headers["retry-after"]
        operator.start()
        until(lambda: gateway.ready() or operator.process.poll() is not None, 2 * VLLM_SECONDS)
        assert operator.process.poll() is None, f"the engine ended with {operator.process.returncode}"
        assert caller.chat("hello again", max_tokens=4).outcome is Outcome.COMPLETE
        assert caller.verify(gateway.policy()).statement == caller.verdict.statement
        assert with_the_sdk(gateway, tmp_path) == before


def with_the_sdk(gateway: Served, folder: Path) -> list[str]:
    """A chat and a stream, which the SDK has verified."""
    policy = folder / "policy.toml"
    policy.write_text(gateway.policy())
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    with OpenAI(base_url=f"{gateway.origin}/v1", policy=policy, api_key="unused") as client:
        whole = client.chat.completions.create(**asked).choices[0].message.content
        pieces = client.chat.completions.create(**asked, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert whole == streamed
    return [streamed]


@pytest.mark.parametrize("kind", ["tensor", "data"])
def test_a_child_in_two_parts(kind: str, tmp_path: Path) -> None:
    """The gateway's own engine on two cores as on two GPUs: each layer split, or two copies; the statement says so."""
    values = {**vllm_settings(), f"engine_{kind}_parallel": 2}
    values["engine_environment.VLLM_CPU_OMP_THREADS_BIND"] = "0|1"  # by itself it wants a third core
    with served(tmp_path, seconds=3 * VLLM_SECONDS, **values) as gateway:
        with Caller(gateway.origin, gateway.policy()) as caller:
            said = caller.verdict.statement.engine
            assert f"--{kind}-parallel-size=2" in said.flags
            assert said.topology is not None
            assert asdict(said.topology) == {**asdict(Topology()), f"{kind}_parallel": 2}
        with_the_sdk(gateway, tmp_path)
        engine = gateway.engine_pid()
        assert gateway.terminate() == 0
        until(lambda: not Path(f"/proc/{engine}").exists())


def router() -> Path:
    """vLLM's router; without it the test is skipped."""
    found = shutil.which("vllm-router") or ROOT / ".cache/bench/vllm-router/bin/vllm-router"
    if not Path(found).is_file():
        pytest.skip("no vllm-router: `pip install vllm-router`, or `make bench-gateway` once")
    return Path(found)


def test_replicas_behind_the_router(place: Path, tmp_path: Path) -> None:
    """Two replicas share the work; one that is killed under load costs answers of a few seconds, and none after them."""
    program = router()
    port = free_port(3)
    values = {"engine": f"http://127.0.0.1:{port}", "engine_replicas": 2}
    operator = Operator(place, values, engine_python(), program)
    with run_by(operator, tmp_path) as gateway:
        with Caller(gateway.origin, gateway.policy()) as caller:
            said = caller.verdict.statement.engine.topology
            assert said is not None
            assert (said.external, said.replicas) == (True, 2)
            assert caller.get("/v1/models").json["data"][0]["id"] == "tiny"
            with_the_sdk(gateway, tmp_path)
        before, during, after = under_load(gateway, lambda: kill_replica(first(port)))
        assert before == {"200 complete": before.total()}, before
        assert after == {"200 complete": after.total()}, after
        assert during.keys() <= {"200 complete", "200 aborted", "502 error", "503 error"}, during
        assert CANARY not in operator.log.read_text(errors="replace")


def under_load(gateway: Served, act: Any) -> list[Counter[str]]:
    """What clients saw before, within 10 s after, and later than that."""
    seen: list[tuple[float, str]] = []
    acted = [float("inf")]
    over = time.monotonic() + 30

    def client(number: int) -> None:
        with Caller(gateway.origin, gateway.policy()) as caller:
            while time.monotonic() < over:
                began = time.monotonic()
                answer: Answer = caller.chat(f"{CANARY} {number}", max_tokens=32, stream=bool(number % 2))
                seen.append((began, f"{answer.status} {answer.outcome}"))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        time.sleep(8)
        acted[0] = time.monotonic()
        act()
        for one in clients:
            one.result()
    spans = ((0.0, acted[0] - 2), (acted[0] - 2, acted[0] + 10), (acted[0] + 10, float("inf")))
    return [Counter(what for began, what in seen if start <= began < end) for start, end in spans]


def first(router: int) -> int:
    """The port of the replica that the router itself asks for what all have in common, such as the version."""
    listed = httpx.get(f"http://127.0.0.1:{router}/list_workers", trust_env=False).json()["urls"]
    return int(listed[0].rpartition(":")[2])


def kill_replica(port: int) -> None:
    """The API server on that port, and its inner processes, at once."""
    [server] = running_with(f"--port={port}\0")
    victims = [server, *descendants(server)]
    for victim in victims:
        os.kill(victim, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [*children, *(inner for child in children for inner in descendants(child))]
