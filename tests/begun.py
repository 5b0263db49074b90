"""`enclave-server` with everything imported already: forks of a process that has done nothing else.

An interpreter imports for a second before the command does a thing, the same in each of a hundred starts. Where a test asks what
the gateway does, and not how it is loaded, it gets a `Begun`, which is used as a `subprocess.Popen` is.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

_ROOT = Path(__file__).resolve().parent.parent
_LETTER = 128 * 1024  # bytes of an order: arguments and environment
_ROOM = " " * 4096  # where /proc shows the arguments
_ENVIRONMENT = dict(os.environ)  # before any test changes it


class Begun:
    """One `enclave-server` with these arguments, in this process's directory and environment."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdout: IO[bytes],
        stderr: IO[bytes],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._life, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = json.dumps([[*arguments], str(Path.cwd()), dict(os.environ if env is None else env)])
        with theirs, Path(os.devnull).open() as nothing:
            files = [each.fileno() for each in (nothing, stdout, stderr, theirs)]
            socket.send_fds(_template(), [order.encode()], files)
        self._ends = select.poll()
        self._ends.register(self._life, select.POLLIN)
        pid, [self._process], _, _ = socket.recv_fds(self._life, 32, 1)
        self.pid = int(pid)

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._ended(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("enclave-server", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._ends.poll(None if timeout is None else 1000 * timeout):
            self.returncode = int(self._life.recv(32))
            self._life.close()
            os.close(self._process)
        return self.returncode


def run(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    with TemporaryFile() as out, TemporaryFile() as err:
        status = Begun(arguments, stdout=out, stderr=err, env=env).wait(240)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, status, out.read().decode(), err.read().decode())


@cache
def _template() -> socket.socket:
    """The way to the process that is forked: one for each process of the tests, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.begun", str(theirs.fileno()), _ROOM]
        process = subprocess.Popen(
            command, cwd=_ROOT, env=_ENVIRONMENT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _main(orders: socket.socket) -> None:
    """Fork for each order until there is none, and tell of each process that ends. In a child it is the command."""
    from enclave_server.__main__ import COMMANDS, main

    for home, _ in COMMANDS.values():
        if home.startswith("enclave_server."):
            import_module(home.partition(":")[0])
    gc.freeze()
    lives: dict[int, tuple[int, socket.socket]] = {}  # by what is readable once the process has ended
    while True:
        ready = select.select([orders.fileno(), *lives], [], [])[0]
        for handle in set(ready) & set(lives):
            _end(handle, *lives.pop(handle))
        if orders.fileno() in ready:
            order, files, _, _ = socket.recv_fds(orders, _LETTER, 4)
            if not order:
                return
            life = socket.socket(fileno=files.pop())
            if not (pid := os.fork()):
                _close(orders, life, lives)
                _become(order, files)
                main()
                return
            lives[handle := os.pidfd_open(pid)] = (pid, life)
            socket.send_fds(life, [str(pid).encode()], [handle])
            for file in files:
                os.close(file)


def _end(handle: int, pid: int, life: socket.socket) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(handle)
    with life, suppress(OSError):  # nobody may wait for it any more
        life.send(str(status).encode())


def _close(orders: socket.socket, life: socket.socket, lives: dict[int, tuple[int, socket.socket]]) -> None:
    """What is the template's alone."""
    for each in (orders, life, *(other for _, other in lives.values())):
        each.close()
    for handle in lives:
        os.close(handle)


def _become(order: bytes, files: Sequence[int]) -> None:
    """As after an exec of the command: its files, directory, environment and arguments, which /proc shows too."""
    arguments, folder, environment = json.loads(order)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = ["enclave-server", *arguments]
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])  # proc(5)
    ctypes.memmove(start, "\0".join(sys.argv).encode().ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
