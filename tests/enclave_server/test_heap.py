"""Memory that is free goes back to the kernel, once the work is done that it was for."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from enclave_server import server
from enclave_server.identities import Identities
from enclave_server.identity import make_identity
from tests.servers import gateway_settings

RESIDENT = """
import os
from enclave_server.heap import give_free_memory_back, give_large_memory_back

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
"""


def measured(program: str) -> list[int]:
    """What a program prints: in a process of its own, whose heap nobody has used yet."""
    done = subprocess.run([sys.executable, "-c", RESIDENT + program], stdout=subprocess.PIPE, check=True)
    return [int(number) for number in done.stdout.split()]


def test_large_memory_is_given_back() -> None:
    """A process that held many large bodies beside small things has hardly any of their memory afterwards."""
    [left] = measured("""
give_large_memory_back()
kept, before = [], resident()
for _ in range(3):
    large = []
    for _ in range(8):
        large.append(bytearray(10 << 20))
        kept.append(bytearray(5000))
    del large
print(resident() - before)
""")
    assert left < 10 << 20


def test_free_memory_goes_back() -> None:
    """What was freed between things that stay, which glibc keeps by itself."""
    held, left = measured("""
before, kept, pieces = resident(), [], []
for _ in range(300):
    pieces.append(bytearray(64 << 10))
    kept.append(bytearray(2000))
del pieces
between = resident()
give_free_memory_back()
print(between - before, resident() - before)
""")
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
