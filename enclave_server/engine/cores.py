"""The gateway's processes keep off the cores that an engine computes on, where it has bound its threads to some.

vLLM for CPU binds each computing thread to a core and waits for the slowest of them; what else runs there, the kernel does
not move away at once. An engine that binds nothing, as on GPUs, changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from pathlib import Path

from enclave_server.log import log


@contextmanager
def kept_off(engine: int, *, gateway: int | None, workers: int) -> Iterator[None]:
    """Meanwhile `gateway` and its children have the cores that no thread of the processes from `engine` down is bound to.

    Nothing changes where these are fewer than `workers`, nor without a `gateway`. What they start meanwhile starts there too."""
    given = os.sched_getaffinity(0)
    left = given - _bound(engine, given)
    if gateway is None or left == given or len(left) < workers:
        yield
        return
    log.info("gateway keeps off the engine's cores", count=len(left))
    _keep_to(left, gateway)
    try:
        yield
    finally:
        _keep_to(given, gateway)


def _bound(engine: int, given: AbstractSet[int]) -> set[int]:
    """All cores that one thread or another is bound to: it may use fewer than it was given."""
    cores: set[int] = set()
    for thread in (thread for process in _family(engine) for thread in _threads(process)):
        with suppress(OSError):  # it has ended
            own = os.sched_getaffinity(thread)
            cores |= own if own < given else set()
    return cores


def _keep_to(cores: AbstractSet[int], gateway: int) -> None:
    for process in (gateway, *_children(gateway)):  # the parent first: what it starts from then on is there
        for thread in _threads(process):
            with suppress(OSError):
                os.sched_setaffinity(thread, cores)


def _family(process: int) -> Iterator[int]:
    yield process
    for child in _children(process):
        yield from _family(child)


def _children(process: int) -> list[int]:
    children = []
    for thread in _threads(process):
        with suppress(OSError):
            children += Path(f"/proc/{process}/task/{thread}/children").read_text().split()
    return [int(child) for child in children]


def _threads(process: int) -> list[int]:
    try:
        return [int(thread) for thread in os.listdir(f"/proc/{process}/task")]  # noqa: PTH208 - names, not paths
    except OSError:  # it has ended, or is hidden from us
        return []
