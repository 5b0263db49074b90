"""Memory that is free goes back to the kernel, once the work is done that it was for."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from enclave_server import server
from enclave_server.heap import give_free_memory_back, give_large_memory_back
from enclave_server.identities import Identities
from enclave_server.identity import make_identity
from tests.servers import gateway_settings


def test_large_memory_is_given_back() -> None:
    """A process that held many large bodies beside small things has hardly any of their memory afterwards."""
    found, tell = os.pipe()
    if (pid := os.fork()) == 0:
        give_large_memory_back()
        kept = []
        before = _resident()
        for _ in range(3):
            large = []
            for _ in range(8):
                large.append(bytearray(10 << 20))
                kept.append(bytearray(5000))
            del large
        os.write(tell, str(_resident() - before).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert int(os.read(found, 20)) < 10 << 20
    os.close(found)
    os.close(tell)


def test_free_memory_goes_back() -> None:
    """What was freed between things that stay, which glibc keeps by itself."""
    found, tell = os.pipe()
    if (pid := os.fork()) == 0:
        before, kept, pieces = _resident(), [], []
        for _ in range(300):
            pieces.append(bytearray(64 << 10))
            kept.append(bytearray(2000))
        del pieces
        between = _resident()
        give_free_memory_back()
        os.write(tell, f"{between - before} {_resident() - before}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    held, left = map(int, os.read(found, 40).split())
    os.close(found)
    os.close(tell)
    assert held > 15 << 20, "nothing was held: the test shows nothing"
    assert left < 4 << 20


async def test_a_worker_gives_back_when_it_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once after each time of work, not while it works and not again and again."""
    given = []
    monkeypatch.setattr(server, "give_free_memory_back", lambda: given.append(True))
    settings = gateway_settings(tmp_path)
    running = server.make_server(_nothing, settings, Identities(make_identity(settings, engine_version="0")))

    async def looks() -> list[int]:
        """How often it had given back, after each of three looks."""
        counts = []
        for _ in range(3):
            await running.on_tick(1)
            counts.append(len(given))
        return counts

    assert await looks() == [0, 0, 0], "there was no work yet"
    running.server_state.tasks.add(work := asyncio.create_task(asyncio.sleep(60)))
    assert await looks() == [0, 0, 0], "it works"
    running.server_state.total_requests += 1
    running.server_state.tasks.discard(work)
    work.cancel()
    assert await looks() == [0, 1, 1]
    running.server_state.total_requests += 1
    assert await looks() == [1, 2, 2]


async def _nothing(*_: object) -> None:
    """An application that is never asked."""


def _resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
