"""An engine that somebody else runs on this machine, such as vLLM's router before several replicas, or a cluster's head.

Promises: the gateway starts only when the engine answers, serves the model's name and tells its version, which the statement
then names; it is ready only while the engine is healthy and of that version. It cannot promise more: what the engine was
started with, and which files it loaded, is its operator's word, and the statement says so (`engine.topology.external`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from enclave_server.engine.address import Address
from enclave_server.engine.answer import UpstreamError
from enclave_server.engine.installed import EngineError, Installed
from enclave_server.engine.kept import HUNG_AFTER, POLL_SECONDS, Status, healthy
from enclave_server.engine.upstream import Upstream
from enclave_server.log import log

_MAX_MODELS = 1024 * 1024


def find_external(address: Address, *, model: str, seconds: float, replicas: int = 1) -> Installed:
    """Wait for the engine, and ask what it is. Call it where no event loop runs."""
    return asyncio.run(_find(address, model, seconds, _asked(replicas)))


def _asked(replicas: int) -> str:
    """Whether it can answer: a router's own health is bad as soon as one of its replicas is away."""
    return "/readiness" if replicas > 1 else "/health"


async def _find(address: Address, model: str, seconds: float, health: str) -> Installed:
    async with Upstream(address, read_seconds=HUNG_AFTER) as upstream:
        deadline = time.monotonic() + seconds
        while not await healthy(upstream, health):
            if time.monotonic() > deadline:
                raise EngineError(f"engine: nothing healthy answers at its address after {seconds:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        version = await _version(upstream)
        listed = await _ask(upstream, "/v1/models")
    names = [entry.get("id") for entry in listed.get("data", ()) if isinstance(entry, dict)]
    if model not in names:
        raise EngineError(f"engine: it serves {names}, model_name is {model!r}")
    return Installed(version, frozenset())


class ExternalEngine:
    """Watches an engine, and never touches it."""

    def __init__(self, address: Address, version: str, status: Status, *, replicas: int = 1) -> None:
        self.address, self._version, self._status = address, version, status
        self._health = _asked(replicas)
        self.on_give_up: Callable[[], None] = lambda: None
        self.gave_up = False  # it never does: whoever runs the engine may start it again
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        self._status.unready = "engine_stopping"
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        async with Upstream(self.address, read_seconds=HUNG_AFTER) as upstream:
            while True:
                reason = await self._look(upstream)
                if reason != self._status.unready:
                    log.warning("engine is away", reason=reason) if reason else log.info("engine ready")
                self._status.unready = reason
                await asyncio.sleep(POLL_SECONDS)

    async def _look(self, upstream: Upstream) -> str | None:
        """Why it cannot answer now. The version is asked every time: another engine may have taken its place."""
        if not await healthy(upstream, self._health):
            return "engine_unreachable"
        try:
            return None if await _version(upstream) == self._version else "engine_replaced"
        except (EngineError, UpstreamError):
            return "engine_unreachable"


async def _version(upstream: Upstream) -> str:
    version = (await _ask(upstream, "/version")).get("version")
    if not isinstance(version, str) or not 0 < len(version) <= 256:
        raise EngineError("engine: it does not tell its version at /version")
    return version


async def _ask(upstream: Upstream, path: str) -> dict[str, Any]:
    try:
        async with upstream.request("GET", path) as answer:
            said = json.loads(await answer.read(_MAX_MODELS)) if answer.status == 200 else None
    except (UpstreamError, ValueError):
        said = None
    if not isinstance(said, dict):
        raise EngineError(f"engine: it has no answer at {path}")
    return said
