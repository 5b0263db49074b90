"""The supervisor: readiness follows the engine, crashes are followed by restarts, and a crash loop has an end."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from structlog.testing import capture_logs

from enclave_server.engine import supervisor as engine_module
from enclave_server.engine.flags import ALLOWED_FLAGS
from enclave_server.engine.installed import EngineError, find_engine
from enclave_server.engine.supervisor import Engine
from enclave_server.prefork import SharedStatus
from tests.enclave_server.fake_vllm import fake_python, set_plan, starts
from tests.processes import running_with
from tests.servers import VERSION, gateway_settings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses between restarts."""
    monkeypatch.setattr(engine_module, "MAX_PAUSE", 0.1)
    monkeypatch.setattr(engine_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(engine_module, "TERM_SECONDS", 0.3)  # its worker does not listen to SIGTERM


@asynccontextmanager
async def supervised(
    tmp_path: Path, plan: dict[str, Any] | None = None, **changes: Any
) -> AsyncIterator[Engine]:
    python = fake_python(tmp_path / "python", **(plan or {}))
    with TemporaryDirectory(prefix="run-") as short:  # a socket's path has 107 bytes at most
        changes = {"runtime_dir": short, "engine_isolation": "none", **changes}
        settings = gateway_settings(tmp_path, engine_python=python, **changes)
        engine = Engine(settings, find_engine(python), SharedStatus())
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


async def until(condition: Callable[[], object], seconds: float = 240) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.02)


async def test_start_and_stop(tmp_path: Path) -> None:
    """The engine becomes ready in a private directory, and nothing of it is left after a stop."""
    async with supervised(tmp_path) as engine:
        assert engine.unready == "engine_starting"
        await until(lambda: engine.unready is None)
        assert stat.S_IMODE(engine.socket.parent.stat().st_mode) == 0o700
        marker = str(tmp_path / "python")
        assert running_with(marker)
    assert engine.unready == "engine_stopping"
    assert not running_with(marker)
    assert not engine.socket.parent.exists()


async def test_what_it_is_started_with(tmp_path: Path) -> None:
    """The hardened flags are there, and nothing of the gateway's environment is."""
    os.environ["SOME_SECRET"] = "x"
    try:
        async with supervised(tmp_path, engine_flags=["--stream-interval=4"]) as engine:
            await until(lambda: engine.unready is None)
    finally:
        del os.environ["SOME_SECRET"]
    seen = starts(tmp_path / "python")[0]
    for flag in (
        "--no-enable-log-requests",
        "--no-trust-remote-code",
        "--load-format=safetensors",
        "--stream-interval=4",
    ):
        assert flag in seen["arguments"]
    assert "SOME_SECRET" not in seen["environment"]
    assert seen["environment"]["VLLM_PLUGINS"] == ""
    assert seen["environment"]["HF_HUB_OFFLINE"] == "1"
    assert seen["environment"]["VLLM_RPC_BASE_PATH"] == str(engine.socket.parent)


@pytest.mark.parametrize("whom", ["pid", "worker"])
async def test_restart_after_kill(tmp_path: Path, whom: str) -> None:
    """After kill -9 of the engine it is started again, in a new process; a killed helper alone does not matter to it."""
    async with supervised(tmp_path) as engine:
        await until(lambda: engine.unready is None)
        os.kill(starts(tmp_path / "python")[0][whom], signal.SIGKILL)
        if whom == "pid":
            await until(lambda: engine.unready == "engine_restarting")
        await until(lambda: engine.unready is None)
        assert engine._status.restarts == (1 if whom == "pid" else 0)
    assert len(starts(tmp_path / "python")) == (2 if whom == "pid" else 1)


def leave_a_stale_socket(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vllm.sock").touch()
    (folder / "leftover").touch()
    return folder / "leftover"


async def test_stale_socket(tmp_path: Path) -> None:
    """What an earlier life left in the directory does not block the start."""
    with TemporaryDirectory(prefix="run-") as short:
        leftover = leave_a_stale_socket(Path(short, "engine"))
        async with supervised(tmp_path, runtime_dir=short) as engine:
            await until(lambda: engine.unready is None)
            assert not leftover.exists()


async def test_unhealthy(tmp_path: Path) -> None:
    """An engine whose health check fails never becomes ready, and the time to wait for it has an end."""
    async with supervised(tmp_path, {"behaviour": {"healthy": False}}, engine_start_seconds=1) as engine:
        await until(lambda: engine.gave_up)


async def test_other_version(tmp_path: Path) -> None:
    """An engine that says another version than the statement does is not served."""
    with capture_logs() as logs:
        async with supervised(tmp_path, {"behaviour": {"version": "6.6.6"}}) as engine:
            await until(lambda: engine.gave_up)
    assert any("6.6.6" in entry.get("reason", "") for entry in logs)


async def test_never_started(tmp_path: Path) -> None:
    """An engine that cannot start ends in a clear stop at once, with its own words in the log."""
    told = []
    with capture_logs() as logs:
        async with supervised(tmp_path, {"exit": 3, "words": "wrong flag"}) as engine:
            engine.on_give_up = lambda: told.append(True)
            await until(lambda: engine.gave_up)
            assert engine.unready == "engine_stopped"
    assert told == [True]
    assert any(entry.get("line") == "wrong flag" for entry in logs)
    assert len(starts(tmp_path / "python")) == 1


async def test_crash_loop(tmp_path: Path) -> None:
    """An engine that was well and then dies again and again is given up after the set number of restarts."""
    async with supervised(tmp_path, engine_restarts=2) as engine:
        await until(lambda: engine.unready is None)
        set_plan(tmp_path / "python", exit=1)
        os.kill(starts(tmp_path / "python")[0]["pid"], signal.SIGKILL)
        await until(lambda: engine.gave_up)
    assert len(starts(tmp_path / "python")) == 3


async def test_an_end_is_logged(tmp_path: Path) -> None:
    """However the engine ends that its gateway did not: the log has its exit status, and the signal's name."""
    with capture_logs() as logs:
        async with supervised(tmp_path) as engine:
            await until(lambda: engine.unready is None)
            os.kill(starts(tmp_path / "python")[0]["pid"], signal.SIGKILL)
            await until(lambda: engine._status.restarts == 1)
    [ended] = [entry for entry in logs if entry["event"] == "engine process ended"]
    assert (ended["reason"], ended["exit_code"]) == ("status 137 (SIGKILL)", 137)


async def test_last_words_without_an_end_of_line(tmp_path: Path) -> None:
    """What the engine wrote last before it died in its start is in the log too."""
    with capture_logs() as logs:
        async with supervised(tmp_path, {"exit": 3, "words": "first\nlast", "unended": True}) as engine:
            await until(lambda: engine.gave_up)
    lines = [entry["line"] for entry in logs if entry["event"] == "engine output"]
    assert lines == ["first", "last"]


async def test_stop_while_starting(tmp_path: Path) -> None:
    """A stop in the middle of a start leaves nothing behind either."""
    async with supervised(tmp_path, {"never_ready": True}):
        await until(lambda: starts(tmp_path / "python"))
    assert not running_with(str(tmp_path / "python"))


def test_no_vllm(tmp_path: Path) -> None:
    """A Python without vLLM, or no Python at all, is named."""
    with pytest.raises(EngineError, match="has no vLLM"):
        find_engine(fake_python(tmp_path / "python", absent=True))
    with pytest.raises(EngineError, match="there is no"):
        find_engine(tmp_path / "nothing")
    assert find_engine(fake_python(tmp_path / "python")).version == VERSION


async def test_one_gateway_in_a_runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second gateway is refused by the setting's name and touches nothing; when the first has ended, another may begin."""
    monkeypatch.setattr(engine_module, "HOLD_SECONDS", 0.1)
    with TemporaryDirectory(prefix="run-") as short:
        async with supervised(tmp_path, runtime_dir=short) as engine:
            await until(lambda: engine.unready is None)
            with pytest.raises(EngineError, match="runtime_dir: another gateway"):
                Engine(engine._settings, engine._installed, SharedStatus())
            assert engine.socket.exists()
        async with supervised(tmp_path, runtime_dir=short) as engine:
            await until(lambda: engine.unready is None)


@pytest.mark.parametrize("name", ["x" * 80, "ß" * 40, None], ids=["characters", "bytes", "unset"])
def test_long_runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    """A directory whose name is too long for sockets is refused before anything is made or started, the system's own, too."""
    python, place = fake_python(tmp_path / "python"), Path("/nowhere", name or "x" * 40)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    runtime_dir = None if name is None else place
    settings = gateway_settings(tmp_path, engine_python=python, runtime_dir=runtime_dir)
    with pytest.raises(EngineError, match=r"^runtime_dir: .* is too long .* set it to a shorter path"):
        Engine(settings, find_engine(python), SharedStatus())
    assert not place.exists()


@pytest.mark.parametrize(
    "flag",
    [
        "--trust-remote-code",
        "--host=0.0.0.0",
        "--enable-lora",
        "--lora-modules=x=/x",
        "--chat-template=/x.jinja",
        "--tokenizer=/x",
        "--generation-config=/x",
        "--middleware=x",
        "--enable-log-requests",
        "--structured-outputs-config.reasoning_parser_plugin=/x.py",
        '--structured-outputs-config={"backend":"guidance"}',
        "-h",
        "--model=x",
    ],
)
def test_refused_flags(tmp_path: Path, flag: str) -> None:
    """Flags that load code, open listeners, log, or change the model cannot be set."""
    with pytest.raises(ValueError, match="not among those allowed"):
        gateway_settings(tmp_path, engine_flags=[flag])
    assert flag.partition("=")[0] not in ALLOWED_FLAGS


def test_refused_environment(tmp_path: Path) -> None:
    """The engine's environment takes a few named variables only."""
    with pytest.raises(ValueError, match="not among those allowed"):
        gateway_settings(tmp_path, engine_environment={"VLLM_PLUGINS": "evil"})
