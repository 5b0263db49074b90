"""vLLM as a supervised child on a Unix socket in a private directory.

Promises: it is ready only when vLLM answers and is the version that the statement names, and the model's files that it
loaded are those of the settings; when it dies it is started again after a growing pause; when it dies again and again, or
the files are others, the gateway is told to stop. Whatever ends, by whatever signal, nothing of it is left
(`engine/child.py`). Nobody else's engine is in its directory: two gateways with one `runtime_dir` would delete each other's.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

from enclave_server.engine import child as engine_child
from enclave_server.engine.answer import UpstreamError
from enclave_server.engine.cores import kept_off
from enclave_server.engine.flags import command, environment
from enclave_server.engine.installed import EngineError, Installed
from enclave_server.engine.kept import HUNG_AFTER, POLL_SECONDS, Status, healthy
from enclave_server.engine.log import EngineLog
from enclave_server.engine.upstream import Upstream
from enclave_server.engine.user import open_to
from enclave_server.lock import hold
from enclave_server.log import log
from enclave_server.model.check import Loading, ModelFiles
from enclave_server.model.manifest import ModelError
from enclave_server.settings import Settings

STEADY_SECONDS = 60.0  # so much service, and earlier crashes no longer count
MAX_PAUSE = 30.0
TERM_SECONDS = 20.0  # vLLM takes 2 s to end after SIGTERM; then it is killed
HOLD_SECONDS = 30.0  # for the engine of a gateway that was killed a moment ago to be gone
_MAX_PLACE = 60  # bytes of 107: vLLM puts sockets with long names of their own into the same directory


class Model(Protocol):
    """The files that the engine is to load. Both raise ModelError."""

    async def open(self) -> None:
        """Once, before the first start: have them in `model_dir`."""

    def loading(self) -> AbstractAsyncContextManager[Loading]:
        """For each start."""


class Engine:
    """Starts vLLM, watches it, and starts it again."""

    def __init__(
        self,
        settings: Settings,
        installed: Installed,
        status: Status,
        model: Model | None = None,
        gateway: int | None = None,
    ) -> None:
        """`gateway`, the parent of its processes, is who keeps off the engine's cores."""
        self._gateway = gateway
        self._settings, self._installed, self._status = settings, installed, status
        self._model = model or ModelFiles(settings)
        self.on_give_up: Callable[[], None] = lambda: None
        base = settings.runtime_dir
        self._private = _place(base)
        if base is not None:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._user = None if settings.engine_user is None else open_to(settings.engine_user, self._private)
        self._lock = None if base is None else _hold(base)
        self._task: asyncio.Task[None] | None = None
        self._served: float | None = None  # seconds of its last life that it was ready for
        self.gave_up = self._stopping = False

    @property
    def unready(self) -> str | None:
        return self._status.unready

    @unready.setter
    def unready(self, reason: str | None) -> None:
        self._status.unready = reason

    @property
    def socket(self) -> Path:
        return self._private / "vllm.sock"

    @property
    def address(self) -> Path:
        return self.socket

    async def start(self) -> None:
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL. Stop admission first: what is under way now is lost."""
        self._stopping = True
        self.unready = "engine_stopping"
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _supervise(self) -> None:
        try:
            await self._model.open()
            await self._run_again_and_again()
        except ModelError as exc:
            self.unready = "model_refused"
            log.error("model refused", reason=str(exc))
            self._give_up()

    async def _run_again_and_again(self) -> None:
        failures, ever = 0, False
        while True:
            try:
                await self._run_once()
            except (EngineError, UpstreamError, OSError, ValueError) as exc:
                log.error("engine ended", reason=str(exc), attempt=failures + 1)
            ever = ever or self._served is not None
            failures = 1 if (self._served or 0) > STEADY_SECONDS else failures + 1
            if not ever or failures > self._settings.engine_restarts:
                self.unready = "engine_stopped"
                log.error(
                    "engine gave up",
                    count=failures,
                    reason="it never became ready" if not ever else "crash loop",
                )
                return self._give_up()
            pause = min(MAX_PAUSE, 2.0 ** (failures - 1))
            self.unready = "engine_restarting"
            self._status.restarts += 1
            log.warning("engine restarts", delay_seconds=pause, attempt=failures)
            await asyncio.sleep(pause)

    def _give_up(self) -> None:
        self.gave_up = True
        self.on_give_up()

    async def _run_once(self) -> None:
        """One life of the engine. Ends with EngineError, whatever the end was, but for ModelError."""
        self._served = None
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            model = await stack.enter_async_context(
                self._model.loading()
            )  # first: before the engine opens any
            process, output = await stack.enter_async_context(self._child())
            upstream = await stack.enter_async_context(Upstream(self.socket, read_seconds=HUNG_AFTER))
            await self._until_ready(process, upstream, model)
            self.unready = "model_checking"
            await model.passed()
            output.serving = True  # first: from here on prompts may come
            self.unready = None
            ready = time.monotonic()
            log.info("engine ready", version=self._installed.version, seconds=round(ready - started, 1))
            try:
                with kept_off(process.pid, gateway=self._gateway, workers=self._settings.workers):
                    await self._whilehealthy(process, upstream)
            finally:
                self._served = time.monotonic() - ready
                if self.unready is None:
                    self.unready = "engine_restarting"

    async def _until_ready(self, process: Process, upstream: Upstream, model: Loading) -> None:
        deadline = time.monotonic() + self._settings.engine_start_seconds
        while not await healthy(upstream):
            model.look()
            if time.monotonic() > deadline:
                raise EngineError(f"not ready after {self._settings.engine_start_seconds:.0f} s")
            await _exited(process, within=POLL_SECONDS)
        async with upstream.request("GET", "/version") as answer:
            said = json.loads(await answer.read(4096))
        if said != {"version": self._installed.version}:
            raise EngineError(f"it says {said}, the statement says version {self._installed.version}")

    async def _whilehealthy(self, process: Process, upstream: Upstream) -> None:
        """Return never: raise when the process has ended, or answers its health check with anything but 200."""
        while True:
            await _exited(process, within=POLL_SECONDS)
            if not await healthy(upstream):
                await _exited(process, within=POLL_SECONDS)
                raise EngineError("its health check failed")

    @asynccontextmanager
    async def _child(self) -> AsyncIterator[tuple[Process, EngineLog]]:
        """The engine's process, from its start to the last of its descendants."""
        settings, private = self._settings, self._private
        shutil.rmtree(private, ignore_errors=True)  # a stale socket would block the start
        private.mkdir(mode=0o700, exist_ok=self._user is not None)
        if self._user is not None:  # the engine makes its socket there, for its own group
            os.chown(private, -1, self._user[1])
            private.chmod(0o770)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            engine_child.__file__,
            settings.engine_isolation,
            "-" if self._user is None else "{}:{}".format(*self._user),
            str(private),
            *command(settings, f"--uds={self.socket}"),
            env=environment(settings, private),
            cwd=private,
            pass_fds=() if self._lock is None else (self._lock,),  # it empties the directory, maybe after us
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
        )
        output, group, reader = EngineLog(self._installed.source_files), 0, None
        patience = TERM_SECONDS
        try:
            group, isolation = await _first_line(process)
            log.info("engine starts", pid=group, isolation=isolation, model=settings.model_name)
            reader = asyncio.create_task(_read(process, output))
            yield process, output
        except ModelError:
            patience = 0  # it read what nobody has vouched for
            raise
        finally:
            await _end(process, patience)
            if not self._stopping:
                log.error(
                    "engine process ended", exit_code=process.returncode, reason=_how(process.returncode)
                )
            if (
                group and process.returncode != 0
            ):  # engine_child may have been killed before it could kill the rest
                with suppress(ProcessLookupError, PermissionError):  # another user's: its namespace ends it
                    os.killpg(group, signal.SIGKILL)
            if reader is not None:
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader, TERM_SECONDS)
            if not self._stopping:
                output.explain_start()
            shutil.rmtree(private, ignore_errors=True)


def _place(base: Path | None) -> Path:
    """The engine's own directory, in `runtime_dir`; each start makes it, so a killed gateway leaves none."""
    if base is None:
        private = Path(tempfile.gettempdir(), f"enclave-{secrets.token_hex(8)}")
    else:
        private = base.resolve() / "engine"
    length = len(os.fsencode(private))
    if length > _MAX_PLACE:
        raise EngineError(
            f"runtime_dir: {private} is too long for sockets ({length} bytes, at most {_MAX_PLACE}); "
            "set it to a shorter path, such as /run/enclave"
        )
    return private


def _hold(runtime_dir: Path) -> int:
    """The directory is this gateway's, until its last process has ended."""
    try:
        return hold(runtime_dir / "lock", HOLD_SECONDS)
    except BlockingIOError:
        raise EngineError(
            f"runtime_dir: another gateway runs its engine in {runtime_dir}; give each a directory of its own"
        ) from None


async def _exited(process: Process, *, within: float) -> None:
    """Wait `within` seconds; an end of the process in that time is an error."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            code = await process.wait()
            raise EngineError(f"its process ended with {_how(code)}")


def _how(code: int | None) -> str:
    """An exit status in words; engine_child adds 128 to the number of a signal, as shells do."""
    number = -code if code is not None and code < 0 else (code or 0) - 128
    name = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
    return f"status {code}{name}"


async def _end(process: Process, patience: float) -> None:
    """Ask it to end, then close its lifeline, which kills whatever is left."""
    if process.returncode is not None or process.stdin is None:
        return
    with suppress(TimeoutError, ConnectionError):
        process.stdin.write(b"T")
        async with asyncio.timeout(patience):
            await process.wait()
    process.stdin.close()
    await process.wait()


async def _first_line(process: Process) -> tuple[int, str]:
    """The engine's process group and its namespaces, as engine_child reports them."""
    line = (await process.stdout.readline()).decode().strip() if process.stdout is not None else ""
    group, _, isolation = line.partition(" ")
    if not group.isdecimal():
        await process.wait()
        raise EngineError(line or f"its process ended with {_how(process.returncode)}")
    return int(group), isolation


async def _read(process: Process, output: EngineLog) -> None:
    while process.stdout is not None and (data := await process.stdout.read(65536)):
        output.feed(data)
