"""Nothing of the engine outlives the gateway or itself, however either ends. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from enclave_server.engine import child as engine_child
from enclave_server.lock import hold
from tests.processes import running_with, until

# An engine that starts two processes of its own, one of them in a session of its own, and waits.
TREE = """
import os, subprocess, sys, time
subprocess.Popen(["sleep", "600"])
if sys.argv[1] == "daemon": subprocess.Popen(["sleep", "601"], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""


def can_isolate() -> bool:
    probe = [sys.executable, engine_child.__file__, "required", "-", "/nonexistent", "/bin/true"]
    done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=240)
    return done.returncode != engine_child.REFUSED


ISOLATED = can_isolate()
isolations = pytest.mark.parametrize(
    "isolation",
    [
        "none",
        pytest.param(
            "required", marks=pytest.mark.skipif(not ISOLATED, reason="the kernel allows no namespaces here")
        ),
    ],
)


class Child:
    """engine_child around TREE, with a marker in every process's environment."""

    def __init__(self, folder: Path, isolation: str, how: str = "plain", keep: tuple[int, ...] = ()) -> None:
        self.private = folder / "private"
        self.private.mkdir()
        self.marker = f"MARK={folder}"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                engine_child.__file__,
                isolation,
                "-",
                str(self.private),
                sys.executable,
                "-c",
                TREE,
                how,
            ],
            env={"PATH": os.environ["PATH"], "MARK": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            pass_fds=keep,
        )
        assert self.process.stdout is not None
        self.group, self.names = self.process.stdout.readline().decode().split()
        assert self.process.stdout.readline() == b"up\n"

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for pid in running_with(f"MARK={tmp_path}"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@isolations
def test_gateway_killed(folder: Path, isolation: str) -> None:
    """When the lifeline ends, the engine, its processes and its directory go at once."""
    child = Child(folder, isolation)
    until(lambda: len(running_with(child.marker)) >= 3)  # the last shows its environment a moment later
    child.close()
    until(lambda: not running_with(child.marker))
    assert not child.private.exists()


@isolations
def test_lock_until_the_end(folder: Path, isolation: str) -> None:
    """Who was given the gateway's lock keeps it until the engine and its directory are gone; the engine never has it."""
    lock = hold(folder / "lock", 0)
    child = Child(folder, isolation, keep=(lock,))
    os.close(lock)
    with pytest.raises(BlockingIOError):
        hold(folder / "lock", 0)
    opened = [str(file.readlink()) for file in Path(f"/proc/{child.group}/fd").iterdir()]
    assert str(folder / "lock") not in opened
    assert child.process.stdin is not None
    child.process.stdin.close()
    os.close(hold(folder / "lock", 60))
    assert not child.private.exists()
    assert not running_with(child.marker)
    child.close()


@isolations
def test_engine_killed(folder: Path, isolation: str) -> None:
    """When the engine's first process is killed, its others go with it, and the status says how it ended."""
    child = Child(folder, isolation)
    os.kill(int(child.group), signal.SIGKILL)
    assert child.process.wait(240) == 128 + signal.SIGKILL
    until(lambda: not running_with(child.marker))
    assert not child.private.exists()
    child.close()


@isolations
def test_asked_to_end(folder: Path, isolation: str) -> None:
    """One byte asks the engine to end, with SIGTERM; in a namespace of its own only a process with a handler hears it."""
    child = Child(folder, isolation)
    assert child.process.stdin is not None
    child.process.stdin.write(b"T")
    child.process.stdin.flush()
    if isolation == "none":
        assert child.process.wait(240) == 128 + signal.SIGTERM
    child.close()
    until(lambda: not running_with(child.marker))


@pytest.mark.skipif(not ISOLATED, reason="the kernel allows no namespaces here")
def test_parent_killed(folder: Path) -> None:
    """When engine_child itself is killed, the kernel ends the whole namespace, daemons included."""
    child = Child(folder, "required", "daemon")
    assert {"pid", "net", "mount"} <= set(child.names.split(","))
    child.process.kill()
    until(lambda: not running_with(child.marker))
    child.close()


@pytest.mark.skipif(not ISOLATED, reason="the kernel allows no namespaces here")
def test_no_network(tmp_path: Path) -> None:
    """The isolated engine has its own loopback, its own /dev/shm and process 1, and no other interface."""
    look = (
        "import os, pathlib, socket\n"
        "names = [n for _, n in socket.if_nameindex()]\n"
        "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())\n"
        "print(os.getpid(), names == ['lo'] or names, list(pathlib.Path('/dev/shm').iterdir()))\n"
    )
    command = [sys.executable, "-I", "-S", engine_child.__file__, "required", "-", str(tmp_path / "x")]
    with subprocess.Popen(
        [*command, sys.executable, "-c", look], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        words = process.stdout.read().decode()
    assert words.splitlines()[-1] == "1 True []"


def test_command_that_does_not_exist(tmp_path: Path) -> None:
    """An engine that cannot be executed is an error with its reason, not a silence."""
    command = [sys.executable, engine_child.__file__, "none", "-", str(tmp_path / "x"), "/nonexistent/python"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        words = process.stdout.read().decode()
        assert process.wait(240) == 127
    assert "could not be started" in words
