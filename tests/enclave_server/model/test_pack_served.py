"""`enclave-server serve` with an encrypted pack: it waits for its owner's key, and nothing of the model is left behind."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from enclave_server.model.pack import write_pack
from tests.caller import Caller
from tests.enclave_server.fake_vllm import fake_python
from tests.enclave_server.model.packs import CANARY, ID, KEY, flipped
from tests.enclave_server.owner import CHAT, Provision, public_pem, waiting
from tests.processes import alive, running_with, until
from tests.served import Served, everything_written, model_settings


class Packed:
    """`enclave-server serve` with a pack, and what its owner has."""

    def __init__(self, folder: Path, memory: Path, damage: Callable[[bytearray], Any] | None = None) -> None:
        model, self.memory = folder / "model", memory
        model.mkdir()
        (model / "config.json").write_text('{"model_type":"fake"}')
        (model / "model.safetensors").write_bytes(CANARY * 1000)
        self.pack = folder / "model.pack"
        write_pack(model, self.pack, KEY, model_id=ID)
        if damage is not None:
            data = bytearray(self.pack.read_bytes())
            damage(data)
            self.pack.write_bytes(data)
        (folder / "gateway").mkdir()
        values = {
            **model_settings(model, "fake-model"),
            "model_pack": self.pack,
            "model_dir": memory,
            "engine_python": fake_python(folder / "python"),
            "engine_isolation": "none",
            "drain_seconds": 1,
            "owner_key": public_pem(),
            "secrets": ["model_key"],
        }
        self.gateway = Served(folder / "gateway", values)
        shutil.rmtree(model)
        self._owner = folder / "owner"

    def give(self, key: bytes = KEY, *more: str) -> Any:
        provision = Provision(self._owner, self.gateway.policy(), {"model_key": key})
        return provision(self.gateway.origin, *more)


@pytest.fixture
def packed(tmp_path: Path, memory: Path) -> Iterator[Packed]:
    running = Packed(tmp_path, memory)
    running.gateway.start()
    yield running
    if running.gateway.process.poll() is None:
        running.gateway.process.kill()
        running.gateway.process.wait(60)


def test_served_from_memory(packed: Packed, tmp_path: Path) -> None:
    """It waits; another key is refused and it still waits; with the right one it answers, and its end leaves nothing."""
    gateway = packed.gateway
    until(lambda: waiting(gateway))
    wrong = packed.give(b"l" * 32)
    assert (wrong.exit_code, "secret.value" in wrong.stderr) == (3, True), wrong.output
    assert waiting(gateway)
    assert not list(packed.memory.iterdir())
    assert packed.give().exit_code == 0
    gateway.until_ready(240)
    assert (packed.memory / "model.safetensors").read_bytes() == CANARY * 1000
    with Caller(gateway.origin, gateway.policy()) as caller:
        assert caller.post("/v1/chat/completions", CHAT).status == 200
    written = everything_written(tmp_path / "gateway", tmp_path / "python")
    assert CANARY not in written
    assert KEY not in written
    assert gateway.terminate() == 0
    assert not list(packed.memory.iterdir())


def test_every_process_is_killed(packed: Packed) -> None:
    """`kill -9` of all of them leaves the model in memory; the next start removes it, and waits for its owner again."""
    gateway = packed.gateway
    until(lambda: waiting(gateway))
    assert packed.give().exit_code == 0
    gateway.until_ready(240)
    everybody = running_with(str(gateway.log_file.parent))
    assert gateway.process.pid in everybody
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # nobody sees another die, and tidies up
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gateway.process.wait(60)
    until(lambda: not any(map(alive, everybody)))
    assert (packed.memory / "model.safetensors").exists()
    gateway.start()
    until(lambda: waiting(gateway))
    assert not list(packed.memory.iterdir())
    assert gateway.terminate() == 0


def test_altered_on_the_disk(tmp_path: Path, memory: Path) -> None:
    """A pack whose index is right and whose weights are not ends the gateway with the chunk's name; no engine was started."""
    running = Packed(tmp_path, memory, flipped(-1))
    running.gateway.start()
    try:
        until(lambda: waiting(running.gateway))
        running.give(KEY, "--wait", "1")
        assert running.gateway.process.wait(240) == 1
    finally:
        running.gateway.process.kill()
        running.gateway.process.wait(60)
    assert "[model.pack]" in running.gateway.log
    assert "chunk 0 of model.safetensors" in running.gateway.log
    assert not list(memory.iterdir())
    assert not (tmp_path / "python/starts.jsonl").exists()
