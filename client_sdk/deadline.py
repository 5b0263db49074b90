"""An end for a whole exchange. The timeouts of `httpx` are each for one read: who sends a byte now and then never meets them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class Deadline:
    """Breaks the connection whose making `trace` was told of, whatever it is busy with, when the time is up.

    For blocking transports that do one thing after the other; `trace` goes into a request's extensions. What is then raised
    is the library's own error of a connection that broke, and `passed` says why.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, False
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        with self._lock:
            self._let_go()

    def start(self) -> None:
        """Count from now, also for another exchange over the same connection."""
        self.stop()
        self.passed = False
        self._timer = threading.Timer(self.seconds, self._break)
        self._timer.daemon = True
        # out of threads, or the interpreter is on its way out: without an end then
        with suppress(RuntimeError):
            self._timer.start()

    def stop(self) -> None:
        """Count no more."""
        if self._timer is not None:
            self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of a connection. Its TLS comes later, in another object on the same descriptor: hence a copy of that."""
        if not (event.startswith("connection.connect_") and event.endswith(".complete")):
            return
        plain = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._let_go()
            self._connection = plain.dup()
        if self.passed:
            self._break()

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _break(self) -> None:
        with self._lock:
            self.passed = True
            if self._connection is not None:
                with suppress(OSError):  # it has ended by itself
                    self._connection.shutdown(socket.SHUT_RDWR)
