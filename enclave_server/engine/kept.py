"""What an engine that the gateway starts and one that runs elsewhere have in common: how it is asked for its health, where it says
how it is, and that the gateway ends when it is given up.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol

from enclave_server.engine.answer import UpstreamError
from enclave_server.engine.upstream import Upstream

POLL_SECONDS = 0.5
HUNG_AFTER = 30.0  # seconds without an answer to a health check


class Status(Protocol):
    """Where it says why it cannot answer now, None when it can; and how often it was started again."""

    unready: str | None
    restarts: int


class Kept(Protocol):
    """An engine of either kind, as its keeper knows it."""

    on_give_up: Callable[[], None]
    gave_up: bool

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


async def keep(engine: Kept) -> int:
    """Run the engine until SIGTERM, or until it is given up. An exit status."""
    over = asyncio.Event()
    engine.on_give_up = over.set
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)  # a terminal's Ctrl-C: its parent says when
    await engine.start()
    await over.wait()
    await engine.stop()
    return 1 if engine.gave_up else 0


async def healthy(upstream: Upstream, path: str = "/health") -> bool:
    try:
        async with upstream.request("GET", path) as answer:
            return answer.status == 200
    except UpstreamError:
        return False
