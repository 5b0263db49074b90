"""`attested proxy` as a process, and `attested env`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.client_sdk.live_proxy import ASKED, CHAT, STREAMED
from tests.client_sdk.test_cli import attested
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, free_port

PROGRAM = [sys.executable, "-W", "error", "-c", "from client_sdk.cli import main; main()", "proxy"]


@pytest.fixture
def policy(tmp_path: Path, gateway: LiveGateway) -> Path:
    """A policy that accepts the gateway."""
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    return file


@contextmanager
def started(folder: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The console script, until it listens."""
    log = folder / "proxy.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*PROGRAM, *arguments, "--port", str(port)], stdout=out, stderr=out, text=True
        )
    try:
        until(lambda: "verified" in log.read_text() or process.poll() is not None)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def test_the_program_itself(tmp_path: Path, gateway: LiveGateway, policy: Path, engine: FakeEngine) -> None:
    """It verifies at its start, serves, ends a stream that is under way on SIGTERM, and never tells what passed."""
    key = tmp_path / "key"
    key.write_text("a-marked-key\n")
    port = free_port()
    arguments = (gateway.origin, "--policy", str(policy), "--api-key-file", str(key))
    with started(tmp_path, port, *arguments) as process:
        origin = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{origin}/status.json").json()["enclaves"][0]["state"] == "verified"
        assert httpx.post(origin + CHAT, json=ASKED).status_code == 200
        httpx.post(origin + CHAT, content=b"a-marked-prompt")
        engine.behaviour.delay = 0.1
        idle = socket.create_connection(("127.0.0.1", port))
        with idle, httpx.stream("POST", origin + CHAT, json=STREAMED) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2] == "data: [DONE]"
        assert process.wait(60) == 0
    log = (tmp_path / "proxy.log").read_text()
    assert f"http://127.0.0.1:{port}/v1" in log
    assert f'eval "$(attested env --port {port})"' in log
    assert "SIMULATED" in log
    assert "a-marked" not in log
    assert "hello" not in log
    assert "Traceback" not in log


def test_it_starts_where_the_enclave_is_not_there_yet(tmp_path: Path, policy: Path) -> None:
    """A proxy outlives its enclaves: it says what is wrong, and answers with errors until there is one."""
    port = free_port()
    url = f"https://127.0.0.1:{free_port()}"
    log = tmp_path / "proxy.log"
    with log.open("w") as out:
        process = subprocess.Popen([*PROGRAM, url, "--policy", str(policy), "--port", str(port)], stderr=out)
    try:
        until(lambda: "not reached" in log.read_text())
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models").status_code == 503
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_what_it_does_not_start_with(tmp_path: Path, policy: Path) -> None:
    """Exit codes as everywhere; the dangers have to be named."""
    where = ["--policy", str(policy)]
    assert attested("proxy", "https://e:1").returncode == 64
    assert attested("proxy", "http://e:1", *where).returncode == 3
    assert attested("proxy", "https://e:1/v1/chat/completions", *where).returncode == 64
    assert attested("proxy", "https://e:1", "--policy", str(tmp_path / "none")).returncode == 5
    assert attested("proxy", "https://e:1", *where, "--expose-to-network", "everyone").returncode == 64
    for text in ("", "two words", "a\nb", "ü"):
        (tmp_path / "key").write_text(text)
        done = attested("proxy", "https://e:1", *where, "--api-key-file", str(tmp_path / "key"))
        assert done.returncode == 64, text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = attested("proxy", "https://e:1", *where, "--port", port)
    assert (done.returncode, "cannot listen" in done.stderr) == (5, True)


def test_env_is_what_a_shell_reads() -> None:
    """The lines set what OpenAI's and Anthropic's libraries look for."""
    done = attested("env", "--port", "7000")
    script = f'{done.stdout}\nprintf "%s %s" "$OPENAI_BASE_URL" "$ANTHROPIC_BASE_URL"'
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said == "http://127.0.0.1:7000/v1 http://127.0.0.1:7000"
    assert json.loads(attested("env", "--json").stdout)["OPENAI_BASE_URL"] == "http://127.0.0.1:8642/v1"
    assert attested("env", "--shell", "fish").stdout.startswith("set -gx OPENAI_BASE_URL 'http://")
    assert attested("env", "--shell", "powershell").stdout.startswith("$env:OPENAI_BASE_URL = 'http://")


def test_completion() -> None:
    """What bash asks the program when a person presses the tabulator."""
    asked = {"_ATTESTED_COMPLETE": "complete_bash", "COMP_WORDS": "attested pro", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("attested")
    done = subprocess.run([program], env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert "proxy" in done.stdout.split()
