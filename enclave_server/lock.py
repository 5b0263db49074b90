"""One process at a time, among those that were forked from one parent."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def alone(file: int) -> Iterator[None]:
    """No other process is inside. The kernel takes the lock on `file` from a process that dies; threads do not see it."""
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)
