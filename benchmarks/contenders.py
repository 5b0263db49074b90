"""What `make bench-gateway` measures side by side. Each contender is a process tree that forwards to the mock engine.

A contender that is not installed, or does not start, is left out with the reason as its row. LiteLLM and vllm-router
come from the package registry into throw-away environments under .cache/bench, at the versions named here.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import which

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache/bench"
SOURCES = ROOT / "benchmarks/load"
LITELLM = "litellm[proxy]==1.100.5"
VLLM_ROUTER = "vllm-router==0.1.17"
INSTALL_SECONDS, START_SECONDS = 600, 120
ENGINE_CPU, CONTENDER_CPU = 0, 1
EVENTS = 128  # in a stream, unless a load says otherwise

_NGINX = """
{user} worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 100000000; client_body_buffer_size 64k;
  upstream engine {{ server {upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""
_LITELLM = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "http://127.0.0.1:{engine_port}/v1", api_key: none}}
litellm_settings: {{telemetry: false}}
"""


class SkippedError(Exception):
    """This contender cannot run here; the text says why."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The mock engine: one process, on both kinds of socket."""

    port: int
    socket: Path
    pid: int

    def pace(self, microseconds: int, events: int = EVENTS) -> None:
        """One event per stream every so many microseconds, and so many events; 0: as fast as they are taken."""
        query = f"us={microseconds}&events={events}"
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/pace?{query}", timeout=5):
            pass


@dataclass(frozen=True, slots=True)
class Contender:
    """A running one: where the load goes, and the processes whose CPU time counts (none for the engine itself)."""

    name: str
    target: str
    pid: int | None
    headers: tuple[str, ...] = ()
    path: str = "/v1/chat/completions"
    seal: Callable[[bytes], bytes] = bytes  # what is sent for a body
    streams: bool = True  # it is measured with streams too

    def cpu_seconds(self) -> float:
        """CPU time of the process tree so far."""
        return cpu_seconds(self.pid) if self.pid else 0.0


def build(name: str) -> Path:
    """Compile one of the C programs, unless that has been done."""
    source, program = SOURCES / f"{name}.c", CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["gcc", "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program


@contextmanager
def mock_engine(folder: Path) -> Iterator[Engine]:
    port, path = free_port(), folder / "engine.sock"
    with process("mock_engine", [str(build("mock_engine")), str(port), str(path)], port, ENGINE_CPU) as pid:
        yield Engine(port, path, pid)


@contextmanager
def direct(engine: Engine, _: Path) -> Iterator[Contender]:
    yield Contender("direct", f"127.0.0.1:{engine.port}", None)


@contextmanager
def nginx(engine: Engine, folder: Path) -> Iterator[Contender]:
    program = which("nginx") or which("nginx", path="/usr/sbin")
    if program is None:
        raise SkippedError("nginx is not installed (apt-get install nginx)")
    port, config = free_port(), folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""  # who else may not read the folder
    config.write_text(_NGINX.format(folder=folder, upstream=f"unix:{engine.socket}", port=port, user=user))
    with process("nginx", [str(program), "-c", str(config)], port, CONTENDER_CPU) as pid:
        yield Contender("nginx", f"127.0.0.1:{port}", pid)


@contextmanager
def ours(
    engine: Engine, folder: Path, *, workers: int = 1, pinned: bool = True, other: str = ""
) -> Iterator[Contender]:
    """The gateway with receipts and access control; not pinned, its workers use whatever cores there are.

    `other`: without-checkpoints, or without-memory of sealed requests, so that one can be sent many times."""
    name = "ours" if workers == 1 else f"ours, {workers} workers"
    name = f"{name} {other.replace('-', ' ')}" if other else name
    folder = folder / name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.ours", str(port), str(engine.socket), str(folder)]
    command += [str(workers), *([other] if other else [])]
    with process(
        name.replace(" ", "-"), command, port, CONTENDER_CPU if pinned else None, ready="/readyz"
    ) as pid:
        headers = (f"Authorization: Bearer {(folder / 'key').read_text()}",)
        yield Contender(name, f"127.0.0.1:{port}", pid, headers)


@contextmanager
def litellm(engine: Engine, folder: Path) -> Iterator[Contender]:
    program = str(_installed("litellm", LITELLM))
    port, config = free_port(), folder / "litellm.yaml"
    config.write_text(_LITELLM.format(engine_port=engine.port))
    command = [
        program,
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--num_workers",
        "1",
    ]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    with process("litellm", command, port, CONTENDER_CPU, environment, "/health/liveliness") as pid:
        yield Contender("LiteLLM proxy", f"127.0.0.1:{port}", pid)


@contextmanager
def vllm_router(engine: Engine, _: Path) -> Iterator[Contender]:
    program, port = str(_installed("vllm-router", VLLM_ROUTER)), free_port()
    command = [program, "--worker-urls", f"http://127.0.0.1:{engine.port}", "--policy", "round_robin"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    with process("vllm-router", command, port, CONTENDER_CPU, ready="/health") as pid:
        yield Contender("vllm-router", f"127.0.0.1:{port}", pid)


CONTENDERS: Mapping[str, Callable[[Engine, Path], AbstractContextManager[Contender]]] = {
    "direct": direct,
    "nginx": nginx,
    "ours": ours,
    "ours without checkpoints": partial(ours, other="without-checkpoints"),
    "vllm-router": vllm_router,
    "LiteLLM proxy": litellm,
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _installed(name: str, requirement: str) -> Path:
    """The program in an environment of its own; made within a bounded time, or skipped."""
    folder = CACHE / name
    program = folder / "bin" / name
    if program.exists():
        return program
    print(f"→ {requirement}: a throw-away environment, first time only", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, capture_output=True)
        install = [str(folder / "bin/python"), "-m", "pip", "install", "-qq", "--no-input", requirement]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as exc:
        raise SkippedError(f"{requirement} could not be installed ({type(exc).__name__})") from None
    return program


@contextmanager
def process(
    name: str,
    command: Sequence[str],
    port: int,
    cpu: int | None,
    environment: Mapping[str, str] = {},
    ready: str = "/",
) -> Iterator[int]:
    """A server that answers on `port`. Whatever it writes goes to .cache/bench/NAME.log."""
    many = len(os.sched_getaffinity(0)) > 1
    pin = ["taskset", "-c", str(cpu)] if cpu is not None and many else []
    with (CACHE / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*pin, *command], stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **environment}
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(port, ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SkippedError(f"{name} did not start; see .cache/bench/{name}.log")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def cpu_seconds(pid: int, *, without: int | None = None) -> float:
    """CPU time of a process and all below it so far, but for one branch, from the scheduler's own nanosecond accounts."""
    if pid == without:
        return 0.0
    own = below = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        own += int((task / "schedstat").read_text().split()[0]) / 1e9
        for child in (task / "children").read_text().split():
            below += cpu_seconds(int(child), without=without)
    return own + below
