"""Looking at processes from outside, and forking off the one that runs the tests."""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def running_with(marker: str) -> list[int]:
    """Processes that have `marker` in their arguments or environment; zombies do not count."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if marker.encode() in text and not dead:
            found.append(int(folder.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """It runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def links(pid: int) -> list[str]:
    """What a process has open; of one that ends just now, what was left."""
    found = []
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(str(descriptor.readlink()))
    return found


def forked(work: Callable[[], object]) -> int:
    """A child that does `work` and nothing else, whatever happens in it: it runs no other test, and tidies up after none."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        gc.disable()  # what earlier tests left is not this process's to close or remove
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - it must never return into pytest
        traceback.print_exc()
    finally:
        os._exit(status)


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Wait for a condition; fail when it does not come true, however slow and busy the machine is."""
    deadline, pause = time.monotonic() + seconds, 0.02
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.2)  # what is waited for needs the processor more than we do
