"""One process at a time: among those that were forked from one parent, and among gateways on one machine."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enclave_server.log import log

_LOOK_SECONDS = 0.05


@contextmanager
def alone(file: int) -> Iterator[None]:
    """No other process is inside. The kernel takes the lock on `file` from a process that dies; threads do not see it."""
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)


def hold(path: Path, seconds: float) -> int:
    """Keep every other gateway out, for as long as the descriptor is open in this process or in one that has it from it.

    Waits so long for what is left of one that was killed. BlockingIOError: somebody holds it still."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    begun = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not begun:
                log.warning("another gateway is still here", reason=f"it holds {path}", seconds=seconds)
                begun = time.monotonic()
            elif time.monotonic() - begun > seconds:
                os.close(descriptor)
                raise
            time.sleep(_LOOK_SECONDS)
        else:
            return descriptor
