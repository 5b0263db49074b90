"""An end for a whole exchange. The timeouts of `httpx` are each for one read: who sends a byte now and then never meets them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class Deadline:
    """Breaks the connections whose making `trace` was told of, whatever they are busy with, when the time is up.

    For blocking transports; `trace` goes into a request's extensions. What is then raised is the library's own error of
    a connection that broke, and `passed` says why.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, False
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._break)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        # out of threads, or the interpreter is on its way out: without an end then
        with suppress(RuntimeError):
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of a connection. Its TLS comes later, in another object on the same descriptor: hence a copy of that."""
        if not (event.startswith("connection.connect_") and event.endswith(".complete")):
            return
        plain = info["return_value"].get_extra_info("socket")
        with self._lock:
            self._open.append(plain.dup())
        if self.passed:
            self._break()

    def _break(self) -> None:
        with self._lock:
            self.passed = True
            for connection in self._open:
                with suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)
