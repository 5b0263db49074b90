"""What the engine writes, as far as a log may have it.

Before the engine was first ready nobody's prompt has reached that process, so its lines may be passed on whole: they are,
when it fails to start. From then on only values out of fixed sets are: the level, the name of one of the engine's own
source files, a known exception.
"""

from __future__ import annotations

import builtins
import re
from collections import deque

from enclave_server.log import log

_PREFIX = re.compile(
    rb"(WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[(?:[\w/]*/)?(\w+\.py):(\d{1,5})\]"
)
_ERROR = re.compile(rb"\b(\w+(?:Error|Exception|Interrupt))\b")
_KNOWN_ERRORS = {name for name in dir(builtins) if name.endswith(("Error", "Exception", "Interrupt"))} | {
    "AcceleratorError",
    "EngineDeadError",
    "EngineGenerateError",
    "OutOfMemoryError",
    "ZMQError",
}
MAX_LINE = 64 * 1024


class EngineLog:
    """Takes the engine's output as bytes and logs what may be logged. One for each process of the engine."""

    def __init__(self, source_files: frozenset[str]) -> None:
        self._source_files = source_files
        self._tail = b""
        self._last: tuple[str | None, ...] = ()
        self._start_up: deque[bytes] = deque(maxlen=60)
        self.serving = (
            False  # True from the moment that prompts may reach the engine, until its process has ended
        )

    def feed(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\n")
        self._tail = self._tail[-MAX_LINE:]
        for line in lines:
            if self.serving:
                self._reduced(line)
            elif line.strip():
                self._start_up.append(line.strip())

    def explain_start(self) -> None:
        """Pass on what the engine wrote before it was ready; nothing when it once was."""
        for line in () if self.serving else (*self._start_up, *filter(None, [self._tail.strip()])):
            log.error("engine output", line=line.decode("utf-8", "replace"))

    def _reduced(self, line: bytes) -> None:
        found = _PREFIX.search(line)
        level = found[1].decode() if found else None
        source = found[2].decode() if found else ""
        place = f"{source}:{found[3].decode()}" if found and source in self._source_files else None
        names = (name.decode() for name in _ERROR.findall(line))
        error = next((name for name in names if name in _KNOWN_ERRORS), None)
        event = (level, place, error)
        if event != self._last and any(event):  # tracebacks repeat their place on every line
            self._last = event
            log.warning("engine message", component=level, source=place, error=error)
