"""The command `enclave-server serve` as a process of its own: the installed one before a real vLLM, and forked elsewhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from enclave_server.commands.policy import policy_text
from enclave_server.evidence.tee import open_tee
from enclave_server.model.manifest import read_manifest
from enclave_server.settings import Settings
from tests.begun import Begun, run
from tests.caller import untrusting
from tests.processes import until
from tests.servers import free_port

VLLM_SECONDS = 500.0  # 25 to 40 s on two idle cores
_REPOSITORY = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "enclave_server"]


class Served:
    """One gateway process. Everything it writes goes to `log`."""

    process: subprocess.Popen[bytes] | Begun

    def __init__(self, folder: Path, values: dict[str, Any], *, installed: bool = False) -> None:
        self.folder = folder
        self._installed = installed or "engine_dtype" in values  # a real vLLM takes longer to load anyway
        self.config = folder / "enclave.toml"
        values = {
            "port": free_port(),
            "tee": "simulated-tdx",
            "simulator_dir": str(folder / "simulator"),
            "access": "open",
            "access_database": f"sqlite:///{folder}/access.db",
            "evidence_burst": 1000,  # every caller verifies anew, and of two workers one may get them all
            **values,
        }
        self.config.write_text("".join(f"{name} = {_toml(value)}\n" for name, value in values.items()))
        self.port: int = values["port"]
        self.origin = f"https://127.0.0.1:{self.port}"
        self.log_file = folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def run(self, *arguments: str) -> str:
        """Another command of `enclave-server` with the same configuration."""
        arguments = (*arguments, "--config", str(self.config))
        if not self._installed:
            done = run(*arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout
        return subprocess.run(
            [*COMMAND, *arguments], capture_output=True, text=True, check=True, timeout=240
        ).stdout

    def policy(self) -> str:
        """What `enclave-server policy` prints but for its date, without starting another interpreter."""
        settings = Settings.load(self.config)
        return policy_text(settings, open_tee(settings))

    def start(self) -> None:
        command = ["serve", "--config", str(self.config)]
        with self.log_file.open("ab") as log:
            if self._installed:
                self.process = subprocess.Popen(
                    [*COMMAND, *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            else:
                self.process = Begun(command, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def engine_pid(self) -> int:
        """The engine's first process, as seen from here: inside its namespace it is process 1."""
        whole = self.log.rpartition("\n")[0].splitlines()  # the last line may still be written
        starts = [json.loads(line) for line in whole if '"event": "engine starts"' in line]
        pid: int = starts[-1]["pid"]
        assert pid > 1
        return pid

    def engine_count(self, name: str) -> float:
        """One of real vLLM's own numbers, asked past the gateway: all that have this name, together."""
        arguments = Path(f"/proc/{self.engine_pid()}/cmdline").read_text().split("\0")
        [socket_] = [each.removeprefix("--uds=") for each in arguments if each.startswith("--uds=")]
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket_), timeout=240) as client:
            lines = client.get("http://engine/metrics").text.splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        assert found, f"the engine has no {name}"
        return sum(map(float, found))

    def ready(self) -> bool:
        assert self.process.poll() is None, f"the gateway ended: {self.log[-3000:]}"
        with (
            socket.socket() as probe
        ):  # takes nothing of the time in which the gateway starts, as a client would
            if probe.connect_ex(("127.0.0.1", self.port)):
                return False
        try:
            return httpx.get(f"{self.origin}/readyz", verify=untrusting(), trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def until_ready(self, seconds: float) -> None:
        until(self.ready, seconds)

    def terminate(self, seconds: float = 240) -> int:
        self.process.terminate()
        return self.process.wait(seconds)


@contextmanager
def served(folder: Path, *, seconds: float = 240, installed: bool = False, **values: Any) -> Iterator[Served]:
    """A gateway that is ready; it is killed at the end if it still runs."""
    gateway = Served(folder, values, installed=installed)
    gateway.start()
    try:
        gateway.until_ready(seconds)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait(60)


def model_settings(folder: Path, name: str) -> dict[str, str]:
    """The three settings that name a model."""
    return {
        "model_dir": str(folder),
        "model_name": name,
        "model_digest": read_manifest(folder).digest().hex(),
    }


def engine_python() -> Path:
    """The Python that has vLLM: `ENGINE_PYTHON`, or what `make setup-engine` made; without one the test is skipped."""
    python = Path(os.environ.get("ENGINE_PYTHON", _REPOSITORY / ".venv-engine/bin/python"))
    if not python.is_file():
        pytest.skip(f"no engine environment at {python}: `make setup-engine`, or set ENGINE_PYTHON")
    return python


def chat_model() -> Path:
    """The small real model of the quick start, converted in seconds when it is not there."""
    folder = _REPOSITORY / ".cache/models/SmolLM2-135M-Instruct-Q4_1-dequantized"
    if not folder.is_dir():
        command = [str(engine_python()), "-m", "tools.quickstart_model"]
        subprocess.run(command, cwd=_REPOSITORY, check=True, timeout=240)
    return folder


def tiny_model() -> Path:
    """The tiny random model, made in seconds when it is not there."""
    folder = _REPOSITORY / ".cache/models/tiny-random-llama"
    if not folder.is_dir():
        subprocess.run([engine_python(), "-m", "tools.tiny_model"], cwd=_REPOSITORY, check=True, timeout=240)
    return folder


def vllm_settings() -> dict[str, Any]:
    """Settings that start real vLLM on a CPU, with the tiny model."""
    return {
        **model_settings(tiny_model(), "tiny"),
        "engine_python": str(engine_python()),
        "engine_dtype": "float32",
        "engine_max_model_len": 512,
        "engine_kv_cache_memory": "64M",
        "engine_eager": True,
    }


def everything_written(*folders: Path) -> bytes:
    """The contents and names of all files below the folders."""
    found = []
    for folder in folders:
        for place, names, files in os.walk(folder):
            found += [name.encode() for name in names + files]
            found += [Path(place, name).read_bytes() for name in files if Path(place, name).is_file()]
    return b"\n".join(found)


def _toml(value: Any) -> str:
    return json.dumps(value if isinstance(value, bool | int | float | list) else str(value))
