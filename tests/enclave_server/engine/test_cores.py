"""The gateway's processes keep off the cores that an engine has bound threads to, and nothing else is moved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from enclave_server.engine.cores import kept_off
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.fake_vllm import set_plan, starts
from tests.processes import until
from tests.served import Served, served

GIVEN = os.sched_getaffinity(0)
FIRST, REST = {min(GIVEN)}, GIVEN - {min(GIVEN)}

pytestmark = pytest.mark.skipif(not REST, reason="there is one core only")

# A child and a second thread; the thread, or the child, is bound to what is said; a line when all of it is so.
PROGRAM = """
import os, subprocess, sys, threading
child = subprocess.Popen(["sleep", "600"])
bound, whose = eval(sys.argv[1]), sys.argv[2]
done = threading.Event()
def second():
    if whose == "thread":
        os.sched_setaffinity(0, bound)
    done.set()
    threading.Event().wait()
threading.Thread(target=second, daemon=True).start()
done.wait()
if whose == "child":
    os.sched_setaffinity(child.pid, bound)
print("ready", flush=True)
try:
    sys.stdin.read()
finally:
    child.kill()
"""


class Program:
    """A process with a child and two threads."""

    def __init__(self, stack: ExitStack, bound: set[int] = GIVEN, whose: str = "thread") -> None:
        command = [sys.executable, "-c", PROGRAM, repr(bound), whose]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.enter_context(self.process)  # closes its input, which ends it
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        self.pid = self.process.pid


def threads(pid: int) -> list[int]:
    return sorted(int(folder.name) for folder in Path(f"/proc/{pid}/task").iterdir())


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cores(pid: int) -> list[set[int]]:
    """Of each thread of a process and of its children."""
    own = [os.sched_getaffinity(thread) for thread in threads(pid)]
    return own + [each for child in children(pid) for each in cores(child)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as programs:
        yield programs


@pytest.mark.parametrize("whose", ["thread", "child"])
def test_kept_off(stack: ExitStack, whose: str) -> None:
    """One bound thread, or descendant, of the engine, and the gateway's threads and children have the other cores; then all again."""
    engine, gateway = Program(stack, FIRST, whose), Program(stack)
    before = sorted(map(sorted, cores(engine.pid)))
    with kept_off(engine.pid, gateway=gateway.pid, workers=1):
        assert cores(gateway.pid) == [REST] * 3
        assert sorted(map(sorted, cores(engine.pid))) == before
    assert cores(gateway.pid) == [GIVEN] * 3
    assert os.sched_getaffinity(0) == GIVEN


@pytest.mark.parametrize(
    ("bound", "workers"), [(GIVEN, 1), (FIRST, len(REST) + 1)], ids=["unbound", "too few"]
)
def test_nothing_changes(stack: ExitStack, bound: set[int], workers: int) -> None:
    """An engine that binds nothing, or leaves fewer cores than there are workers, moves nobody."""
    engine, gateway = Program(stack, bound), Program(stack)
    with kept_off(engine.pid, gateway=gateway.pid, workers=workers):
        assert cores(gateway.pid) == [GIVEN] * 3


def test_all_bound(stack: ExitStack) -> None:
    """An engine that computes on every core leaves none to go to."""
    engine, gateway = Program(stack), Program(stack)
    for thread, bound in zip(threads(engine.pid), (FIRST, REST), strict=True):
        os.sched_setaffinity(thread, bound)
    with kept_off(engine.pid, gateway=gateway.pid, workers=1):
        assert cores(gateway.pid) == [GIVEN] * 3


def test_ended_engine_and_no_gateway(stack: ExitStack) -> None:
    """Without an engine, or without a gateway to move, nothing happens."""
    gateway = Program(stack)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with kept_off(ended.pid, gateway=gateway.pid, workers=1):
        assert cores(gateway.pid) == [GIVEN] * 3
    with kept_off(Program(stack, FIRST).pid, gateway=None, workers=1):
        assert os.sched_getaffinity(0) == GIVEN


def of_gateway(gateway: Served) -> set[frozenset[int]]:
    """What the threads of its parent, its keeper and its workers may use."""
    parent, found = gateway.process.pid, set()
    for process in (parent, *children(parent)):
        for thread in threads(process):
            with suppress(ProcessLookupError):  # it has ended
                found.add(frozenset(os.sched_getaffinity(thread)))
    return found


def test_served(tmp_path: Path) -> None:
    """A new worker is where the others are; an engine that starts again has all cores, and one that binds nothing changes nothing."""
    values, python = fake_settings(tmp_path), tmp_path / "python"
    set_plan(python, bound=sorted(FIRST))
    with served(tmp_path / "gateway", **values) as gateway:
        until(lambda: of_gateway(gateway) == {frozenset(REST)})
        before = children(gateway.process.pid)
        [worker] = [child for child in before if not children(child)]  # the keeper has the engine below it
        os.kill(worker, signal.SIGKILL)
        until(lambda: len(children(gateway.process.pid)) == 2 and children(gateway.process.pid) != before)
        gateway.until_ready(240)
        assert of_gateway(gateway) == {frozenset(REST)}

        set_plan(python)
        os.kill(gateway.engine_pid(), signal.SIGKILL)
        until(lambda: len(starts(python)) == 2)
        gateway.until_ready(240)
        assert [start["cores"] for start in starts(python)] == [sorted(GIVEN)] * 2
        assert of_gateway(gateway) == {frozenset(GIVEN)}
