"""TLS over a blocking socket, in few steps: `ssl.SSLSocket` reads a record at a time, and writes as often as it is asked to.

Here a read brings all that has arrived, so that whoever is behind the events of a stream gets them together; and what is
written leaves with the read after it, so that a request's head and body are one write.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

_AT_ONCE = 64 * 1024  # bytes that are asked of the kernel in one read, and held back of what is written
_RECORD = 16 * 1024  # the most that one record holds (RFC 8446 §5.1)


class TLSSocket:
    """As much of a socket as HTTP libraries use, for one thread at a time. There is a peer once `do_handshake` returned."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._sock = sock
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_hostname=server_hostname)
        self._read, self._write = self._tls.read, self._tls.write
        self.fileno, self.close = sock.fileno, sock.close
        self.getsockname, self.getpeername = sock.getsockname, sock.getpeername

    def do_handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            else:
                self._flush()
                return

    def settimeout(self, seconds: float | None) -> None:
        """Libraries say it before each step; the kernel is told when it is another one."""
        if seconds != self._sock.gettimeout():
            self._sock.settimeout(seconds)

    def recv(self, _: int) -> bytes:
        """All that is there, whatever was asked for; waits until something is. Empty when nothing more will come."""
        if self._leaving.pending:
            with suppress(ConnectionError):  # whoever takes no more may have answered before
                self._flush()
        parts: list[bytes] = []
        while True:
            if not self._arrived.pending:
                if parts:
                    return b"".join(parts)
                self._fill()
            try:
                part = self._read(_RECORD)
            except ssl.SSLWantReadError:  # the rest of a record has yet to come
                continue
            except ssl.SSLEOFError:  # HTTP says itself where an answer ends
                part = b""
            if not part:
                self._arrived.write_eof()
                return b"".join(parts)
            parts.append(part)

    def send(self, data: bytes | memoryview) -> int:
        """Take as much as may be held back. It leaves with the next read, or when that is full."""
        sent = self._write(data[:_AT_ONCE])
        if self._leaving.pending >= _AT_ONCE:
            self._flush()
        return sent

    def _fill(self) -> None:
        data = b"" if self._arrived.eof else self._sock.recv(_AT_ONCE)
        if data:
            self._arrived.write(data)
        else:
            self._arrived.write_eof()

    def _flush(self) -> None:
        self._sock.sendall(self._leaving.read())
