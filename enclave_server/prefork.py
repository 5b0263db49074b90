"""One parent that holds the keys and makes new ones, and its children: the engine's keeper and the workers.

The parent never has an event loop or a thread, so it may fork at any time: a worker that dies is replaced by one with the
same identities, from the parent's memory. Nobody outlives the parent: when it dies, the kernel kills its children.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NoReturn

from enclave_server.heap import give_large_memory_back
from enclave_server.identities import Succession
from enclave_server.identity import keep_memory_private
from enclave_server.log import log

Job = Callable[[], int]  # what a child does; its exit status

MAX_DEATHS, DEATH_SECONDS = 5, 60.0  # more deaths of workers in that time end the gateway
LAST_SECONDS = 30.0  # beyond the time to drain: what has not ended then is killed
_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM})
_REASONS = (
    *(None, "engine_starting", "engine_restarting", "engine_stopping", "engine_stopped"),
    *("engine_unreachable", "engine_replaced"),  # of an engine that somebody else runs
    *("model_opening", "model_checking", "model_refused"),
)


class SharedStatus:
    """Why the engine cannot answer now, None when it can; and how often it was started again. Shared bytes, written
    by the keeper and read by every worker."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 9)
        self.unready = "engine_starting"

    @property
    def unready(self) -> str | None:
        return _REASONS[self._memory[0]]

    @unready.setter
    def unready(self, reason: str | None) -> None:
        self._memory[0] = _REASONS.index(reason)

    @property
    def restarts(self) -> int:
        return int.from_bytes(self._memory[1:9], "little")

    @restarts.setter
    def restarts(self, count: int) -> None:
        self._memory[1:9] = count.to_bytes(8, "little")


class Family:
    """The parent's whole life. Make it before any event loop or thread."""

    def __init__(
        self,
        *,
        keeper: Job,
        worker: Callable[[socket.socket], int],
        listeners: Sequence[socket.socket],
        succession: Succession,
        drain_seconds: float,
    ) -> None:
        self._keeper_job, self._worker_job, self._listeners = keeper, worker, list(listeners)
        self._succession, self._drain_seconds = succession, drain_seconds
        self._keeper: int | None = None
        self._workers: dict[int, socket.socket] = {}  # by process
        self._deaths: deque[float] = deque(maxlen=MAX_DEATHS + 1)
        self._stop_at: float | None = None  # when the last is killed; None while it serves
        self._status = 0

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or a failure that cannot be mended. The exit status."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._keeper = fork(self._with_only(None, self._keep))
        for listener in self._listeners:
            self._start_worker(listener)
        while self._alive():
            self._wait()
        return self._status

    def _keep(self) -> int:
        self._succession.leave()
        return self._keeper_job()

    def _alive(self) -> bool:
        return bool(self._workers) or self._keeper is not None

    def _wait(self) -> None:
        left = self._succession.step() if self._stop_at is None else self._stop_at - time.monotonic()
        # A timer, for Python's sigtimedwait makes up a signal when it is stopped and continued after its time.
        signal.setitimer(signal.ITIMER_REAL, max(left, 0.001))
        number = signal.sigwait(_SIGNALS)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if number == signal.SIGCHLD:
            self._reap()
        elif number != signal.SIGALRM:
            self._stop(0)
        elif self._stop_at is not None and self._stop_at <= time.monotonic():
            self._kill()

    def _reap(self) -> None:
        """See who has ended; SIGCHLD tells that somebody did, not how many."""
        while self._alive():
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if pid == self._keeper:
                self._keeper = None
                if self._stop_at is None:
                    log.error("engine keeper ended", exit_code=code)
                    self._stop(1)
            elif (listener := self._workers.pop(pid, None)) is not None:
                self._worker_ended(listener, pid, code)

    def _worker_ended(self, listener: socket.socket, pid: int, code: int) -> None:
        if self._stop_at is not None:
            return self._stop_keeper()
        now = time.monotonic()
        self._deaths.append(now)
        if len(self._deaths) > MAX_DEATHS and now - self._deaths[0] < DEATH_SECONDS:
            log.error("gateway gives up", reason="its workers die again and again", exit_code=code)
            return self._stop(1)
        log.error("worker ended, another takes its place", pid=pid, exit_code=code)
        return self._start_worker(listener)

    def _start_worker(self, listener: socket.socket) -> None:
        number = self._listeners.index(listener)
        inbox = self._succession.begin_worker(number)

        def work() -> int:
            self._succession.enter(number, inbox)
            return self._worker_job(listener)

        pid = fork(self._with_only(listener, work))
        inbox.close()
        self._workers[pid] = listener

    def _with_only(self, listener: socket.socket | None, job: Job) -> Job:
        """A child closes what others serve, so that a socket closes with the last who serves it."""

        def work() -> int:
            for other in self._listeners:
                if other is not listener:
                    other.close()
            return job()

        return work

    def _stop(self, status: int) -> None:
        """Let the workers finish what they have; then the engine."""
        if self._stop_at is not None:
            return
        self._stop_at = time.monotonic() + self._drain_seconds + LAST_SECONDS
        self._status = status
        log.info("gateway stops", seconds=self._drain_seconds)
        for listener in self._listeners:
            listener.close()
        for pid in self._workers:
            os.kill(pid, signal.SIGTERM)
        self._stop_keeper()

    def _stop_keeper(self) -> None:
        if not self._workers and self._keeper is not None:
            os.kill(self._keeper, signal.SIGTERM)

    def _kill(self) -> None:
        log.error("gateway killed what did not end", count=len(self._workers))
        for pid in [*self._workers, *([self._keeper] if self._keeper is not None else [])]:
            os.kill(pid, signal.SIGKILL)
        self._stop_at = time.monotonic() + LAST_SECONDS


def fork(job: Job) -> int:
    """A child that does `job`, and dies with its parent. Returns in the parent alone; call it before any thread."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live(parent, job)
    return pid


def _live(parent: int, job: Job) -> NoReturn:
    status = 70  # EX_SOFTWARE
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew what to do then
            os._exit(status)
        keep_memory_private()
        give_large_memory_back()
        for number in _SIGNALS:  # until the job has handlers of its own, being told to stop ends it
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        status = job()
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else status
    except BaseException as exc:  # noqa: BLE001 - a child must never return into the parent's code
        log.error("process failed", error=type(exc).__name__, pid=os.getpid())
    finally:
        sys.stderr.flush()
        os._exit(status)
