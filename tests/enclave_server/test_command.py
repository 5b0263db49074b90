"""`enclave-server` as operators run it, with a stand-in for the engine; and the canary: no prompt is ever written."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from attestation.receipt import Outcome
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.fake_vllm import set_plan, starts
from tests.processes import running_with, until
from tests.served import COMMAND, Served, everything_written, served

CANARY = "Canary7f3a9eXyzzyError"  # looks like the name of an exception, which a log could take for harmless

LONG = CANARY * 99


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """The engine says only the beginning of an answer to `LONG`."""
    behaviour = {"delay": 0.02, "chunks": 10, "hang_after": 3, "hang_on": LONG}
    return {**fake_settings(tmp_path, **behaviour), "drain_seconds": 1}


@pytest.fixture
def gateway(tmp_path: Path, values: dict[str, Any]) -> Iterator[Served]:
    with served(tmp_path / "gateway", **values) as running:
        yield running


def test_policy_and_sigterm(tmp_path: Path, values: dict[str, Any]) -> None:
    """The printed policy accepts the running gateway, which ends cleanly when told to. All are started as operators do."""
    with (
        served(tmp_path / "gateway", installed=True, **values) as gateway,
        Caller(gateway.origin, gateway.run("policy")) as caller,
    ):
        assert caller.chat("hello").outcome is Outcome.COMPLETE
        assert caller.verdict.statement.config.hex() in gateway.run("config")
        assert gateway.terminate() == 0
    assert not running_with(str(tmp_path / "python"))
    assert 0 < gateway.log.index('"event": "gateway stops"') < gateway.log.index('"event": "gateway stopped"')


def test_gateway_killed(gateway: Served, tmp_path: Path) -> None:
    """After kill -9 of the gateway no process, socket or directory of the engine is left."""
    private = Path(starts(tmp_path / "python")[0]["environment"]["HOME"])
    assert (private / "vllm.sock").exists()
    gateway.process.kill()
    until(lambda: not running_with(str(tmp_path / "python")))
    until(lambda: not private.exists())


def test_started_again_after_a_kill(tmp_path: Path, values: dict[str, Any]) -> None:
    """Right after kill -9 the next gateway takes the same `runtime_dir`, and waits until nothing of the last one is left there."""
    with (
        TemporaryDirectory(prefix="run-") as short,
        served(tmp_path / "gateway", **values, runtime_dir=short) as gateway,
    ):
        first = gateway.engine_pid()
        gateway.process.kill()
        gateway.process.wait(60)
        gateway.start()
        gateway.until_ready(240)
        assert len(starts(tmp_path / "python")) == 2
        assert first not in running_with(str(tmp_path / "python"))
        assert Path(short, "engine", "vllm.sock").exists()
        assert gateway.terminate() == 0


def test_crash_loop_ends_the_gateway(tmp_path: Path, values: dict[str, Any]) -> None:
    """An engine that cannot be kept alive ends the gateway with status 1 and a reason."""
    set_plan(tmp_path / "python", exit=1)
    gateway = Served(tmp_path / "gateway", values)
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert '"event": "engine gave up"' in gateway.log


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model_dir", "/nonexistent", "[model.directory]"),
        ("tee", "tdx", "[tee.collect]"),
        ("config_identity", "required", "[config.identity]"),
        ("engine_python", "/nonexistent", "there is no /nonexistent"),
        ("prot", "1", "prot"),
    ],
)
def test_refused_configuration(
    tmp_path: Path, values: dict[str, Any], name: str, value: str, words: str
) -> None:
    """What an operator can mend is one clear message and status 1, before anything is served."""
    gateway = Served(tmp_path / "gateway", {**values, name: value})
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert words in gateway.log
    assert "Traceback" not in gateway.log
    assert not starts(tmp_path / "python")


def test_another_model(tmp_path: Path, values: dict[str, Any]) -> None:
    """Files with another digest end the gateway with status 1 and the reason; the engine that was loading them never served."""
    gateway = Served(tmp_path / "gateway", {**values, "model_digest": "00" * 32})
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert "[model.digest]" in gateway.log
    assert "the settings demand" in gateway.log
    assert '"event": "engine ready"' not in gateway.log
    assert not running_with(str(tmp_path / "python"))


@pytest.mark.parametrize("setting", ["port", "metrics_port"])
def test_port_in_use(tmp_path: Path, values: dict[str, Any], setting: str) -> None:
    """A port that is taken is said, with the setting's name, before the engine is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = Served(tmp_path / "gateway", {**values, setting: taken.getsockname()[1]})
        gateway.start()
        assert gateway.process.wait(240) == 1
    assert f"{setting}: cannot listen on" in gateway.log
    assert "Address already in use" in gateway.log
    assert not starts(tmp_path / "python")


def test_canary(gateway: Served, tmp_path: Path) -> None:
    """A marked prompt through every route and failure appears in nothing that was written, though the engine prints it."""
    seen = starts(tmp_path / "python")[0]
    with Caller(gateway.origin, gateway.policy()) as caller:
        chat, stream = caller.chat(CANARY), caller.chat(CANARY, stream=True)
        assert CANARY.encode() in chat.body
        assert stream.outcome is Outcome.COMPLETE
        caller.post("/v1/completions", {"model": "fake-model", "prompt": CANARY})
        caller.get(f"/v1/models?{CANARY}")
        caller.call("GET", "/v1/models", headers={"Authorization": CANARY, "User-Agent": CANARY, CANARY: "1"})
        caller.get(f"/v1/{CANARY}")
        caller.http.get(f"/{CANARY}")
        caller.http.get("/.well-known/attestation", params={"nonce": CANARY})
        caller.http.get("/v1/models", headers={"Attested-Nonce": CANARY})
        caller.post("/v1/chat/completions", f'{{"{CANARY}'.encode())
        caller.post("/v1/chat/completions", {"temperature": CANARY, CANARY: CANARY})
        caller.post(
            "/v1/chat/completions", {"model": CANARY}
        )  # the stand-in fails on this one, with a traceback
        bytes_that_are_not_http(gateway)
        pieces = caller.stream(
            "/v1/chat/completions", {"model": "m", "messages": [{"content": LONG}], "stream": True}
        )
        next(pieces)
        os.kill(gateway.engine_pid(), signal.SIGKILL)  # the stream's engine dies with the prompt in its hands
        assert b"engine_aborted" in b"".join(pieces)
        until(lambda: len(starts(tmp_path / "python")) == 2)
    gateway.until_ready(240)
    private = Path(seen["environment"]["HOME"])
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(90)
    assert CANARY.encode() not in everything_written(tmp_path / "gateway", private)
    assert '"error": "EngineDeadError"' in gateway.log  # what the filter does let through
    for line in gateway.log.splitlines():
        json.loads(line)


def bytes_that_are_not_http(gateway: Served) -> None:
    port = int(gateway.origin.rpartition(":")[2])
    for words in (
        f"{CANARY}\r\n\r\n",
        f"GET /v1/{CANARY}\xff HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\n{CANARY}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as plain, untrusting().wrap_socket(plain) as tls:
            tls.sendall(words.encode("latin-1"))
            assert tls.recv(4096).startswith(b"HTTP/1.1 400")


def test_help() -> None:
    """The commands that operators need are listed."""
    words = subprocess.run(
        [*COMMAND, "--help"], capture_output=True, text=True, check=True, timeout=240
    ).stdout
    for command in ("serve", "policy", "config", "model"):
        assert command in words
