"""The model is hashed while the engine loads it: nothing is served before it is right, nor when it changed meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from enclave_server.engine import supervisor as engine_module
from enclave_server.model.check import ModelFiles
from enclave_server.model.manifest import ModelError, ModelProblem
from tests.enclave_server.engine.test_supervisor import supervised, until
from tests.enclave_server.fake_vllm import starts
from tests.processes import running_with
from tests.servers import gateway_settings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long pauses."""
    monkeypatch.setattr(engine_module, "MAX_PAUSE", 0.1)
    monkeypatch.setattr(engine_module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(engine_module, "TERM_SECONDS", 0.3)


def reason(logs: list[Any]) -> str:
    (refused,) = [entry for entry in logs if entry["event"] == "model refused"]
    return str(refused["reason"])


async def test_another_digest(tmp_path: Path) -> None:
    """An engine that would load for hours is stopped as soon as its files are known to be others."""
    with capture_logs() as logs:
        async with supervised(tmp_path, {"never_ready": True}, model_digest="00" * 32) as engine:
            await until(lambda: engine.gave_up)
            assert engine.unready == "model_refused"
            assert not running_with(str(tmp_path / "python"))
    assert "[model.digest]" in reason(logs)


async def test_each_life_of_the_engine(tmp_path: Path) -> None:
    """An engine that is started again loads its files again; those that changed meanwhile are refused, and it never serves."""
    with capture_logs() as logs:
        async with supervised(tmp_path) as engine:
            await until(lambda: engine.unready is None)
            (tmp_path / "model/config.json").write_text('{"model_type":"evil"}')
            os.kill(starts(tmp_path / "python")[0]["pid"], signal.SIGKILL)
            await until(lambda: engine.gave_up)
            assert engine.unready == "model_refused"
    assert "[model.digest]" in reason(logs)
    assert [entry["event"] for entry in logs].count("engine ready") == 1


@dataclass
class Machine:
    """What stands between the settings and the files."""

    tmp_path: Path

    @property
    def config(self) -> Path:
        return self.tmp_path / "model/config.json"

    def rewrite(self) -> None:
        self.config.write_bytes(self.config.read_bytes())

    def rewrite_and_set_back_the_time(self) -> None:
        before = self.config.stat()
        self.rewrite()
        os.utime(self.config, ns=(before.st_atime_ns, before.st_mtime_ns))

    def replace_it(self) -> None:
        other = self.tmp_path / "other"
        other.write_bytes(self.config.read_bytes())
        other.replace(self.config)

    def add(self) -> None:
        (self.config.parent / "adapter_config.json").touch()

    def add_and_remove(self) -> None:
        self.add()
        (self.config.parent / "adapter_config.json").unlink()

    def put_away_and_back(self) -> None:
        self.config.rename(self.tmp_path / "away")
        (self.tmp_path / "away").rename(self.config)

    def remove(self) -> None:
        self.config.unlink()


CHANGES: list[Callable[[Machine], None]] = [
    Machine.rewrite,
    Machine.rewrite_and_set_back_the_time,
    Machine.replace_it,
    Machine.add,
    Machine.add_and_remove,
    Machine.put_away_and_back,
    Machine.remove,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_changed_after_it_was_hashed(tmp_path: Path, change: Callable[[Machine], None]) -> None:
    """Whatever a process of the machine does to the files between hashing and loading is seen before anything is served."""
    settings = gateway_settings(tmp_path)
    await asyncio.sleep(0.02)  # stamps are as fine as the kernel's tick
    async with ModelFiles(settings).loading() as loading:
        await loading.passed()
        change(Machine(tmp_path))
        with pytest.raises(ModelError) as caught:
            await loading.passed()
    assert caught.value.problem is ModelProblem.CHANGED


async def test_nobody_waits_for_a_hash(tmp_path: Path) -> None:
    """When the engine ends first, hashing ends with it, however large the files are."""
    settings = gateway_settings(tmp_path)
    with (settings.model_dir / "model.safetensors").open("wb") as file:
        file.truncate(2**40)
    begun = time.monotonic()
    async with ModelFiles(settings).loading() as loading:
        loading.look()
    assert time.monotonic() - begun < 60  # it would take an hour
