"""HTTP's framing, below requests: what arrives before there is one, or between its parts, is bounded in bytes and in time.

uvicorn takes any byte for the beginning of a request that will come, and would wait for it, and keep it, for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from enclave_server.asgi import Fields
from enclave_server.errors import ApiError, head_too_large, invalid_http

MAX_HEAD = 64 * 1024  # bytes of a request's head, of its trailers, or between two parts of its body
SLOWEST = 4096  # bytes that a client has to take each second of an answer with which it is behind


def check_framing(fields: Fields) -> None:
    """Refuse a body that is not simply the bytes that came."""
    for coding in fields.get(b"content-encoding", ()):
        if coding.lower() != b"identity":
            raise ApiError(415, "unsupported_encoding", "Content-Encoding of a request must be identity.")
    for coding in fields.get(b"transfer-encoding", ()):
        if coding.lower() != b"chunked":
            raise ApiError(415, "unsupported_encoding", "Transfer-Encoding of a request must be chunked.")
    if b"upgrade" in fields:  # its body would be the other protocol's
        raise ApiError(400, "upgrade_unsupported", "This gateway speaks HTTP/1.1 and nothing else.")


class UntilClosed(RequestResponseCycle):
    """A request of HTTP/1.0 and its answer: no chunks (RFC 9112, 6.1), it ends with the connection when no length was said."""

    _sized = True

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._sized = any(name == b"content-length" for name, _ in message["headers"])
            self.chunked_encoding = None if self._sized else False
        elif not self._sized:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Framing(HttpToolsProtocol):
    """A connection that is closed when in the time of an idle one it sends no whole head, or takes too little of its answer; when
    it sends a head without an end; and when there are too many, and no other has waited longer for a head."""

    most: int  # connections at once
    _count = itertools.count()
    number = 0  # of the connection: of those that came in one millisecond the first has waited longest
    _unframed = 0  # bytes since a head ended, or a part of a body came
    _running: RequestResponseCycle | None = None  # of all that came, the one that is answered
    _stalled: asyncio.TimerHandle | None = None  # while the client is behind
    _looked: tuple[float, int] = (0.0, 0)  # when, and how many bytes the client had taken by then
    rests_since: float | None = None  # it, or its last answer, was there; None while it has a request

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._socket = transport.get_extra_info("socket")
        self.number = next(Framing._count)
        self.rests_since = self.loop.time()
        self._look_in(self.timeout_keep_alive)
        if len(self.connections) > self.most:
            self._make_room()

    def _make_room(self) -> None:
        waiting = [
            (since, each.number, each)
            for each in self.connections
            if isinstance(each, Framing)
            and (since := each.rests_since) is not None
            and not each.transport.is_closing()
        ]
        if waiting:  # this one at least, but for one that is gone already
            min(waiting)[-1].transport.abort()  # politely it would stay for a while

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which uvicorn leaves after a reset, and all of this
        self.resume_writing()
        if self._running is not None:  # uvicorn tells it to the request that came last
            self._running.disconnected = not self._running.response_complete
            self._running.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """In place of uvicorn's, which sets a timer after each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.rests_since = self.loop.time()

    def timeout_keep_alive_handler(self) -> None:
        """One timer serves all requests of a connection: it looks since when there is none, and sets itself again."""
        now = self.loop.time()
        since = now if self.rests_since is None else self.rests_since
        left = since + self.timeout_keep_alive - now
        if left > 0:
            self._look_in(left)
        else:
            self._look_at_rest(now, first=self._looked[0] < since)

    def _look_at_rest(self, now: float, *, first: bool) -> None:
        """An answer was handed over as a whole, and its client may be behind with it still; only then is there a second look."""
        behind = _taken(self._socket)[1]
        if first and not behind:
            super().timeout_keep_alive_handler()
        elif behind and not (self._takes_enough() or first):
            self.transport.abort()
        else:
            self.rests_since = self.rests_since if behind else now
            self._look_in(self.timeout_keep_alive)

    def _look_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        """Of an answer that is not whole yet, too much waits for the client."""
        super().pause_writing()
        self._takes_enough()
        self._stalled = self.loop.call_later(self.timeout_keep_alive, self._look_at_stalled)

    def _look_at_stalled(self) -> None:
        if self._takes_enough():
            self._stalled = self.loop.call_later(self.timeout_keep_alive, self._look_at_stalled)
        else:
            self.transport.abort()

    def _takes_enough(self) -> bool:
        """Whether the client has taken as much since the last look as the slowest may."""
        (then, before), now = self._looked, self.loop.time()
        self._looked = now, _taken(self._socket)[0]
        return self._looked[1] - before >= SLOWEST * (now - then)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def data_received(self, data: bytes) -> None:
        """In place of uvicorn's: only a whole head ends the time in which one has to come."""
        self._unframed += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # what follows is not read any more
        except httptools.HttpParserError:
            self._refuse(invalid_http())
        else:
            if self._unframed > MAX_HEAD:
                self._refuse(head_too_large(MAX_HEAD))

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise ValueError("no version that is spoken here")  # ends the parser
        super().on_headers_complete()
        if version == "1.0":
            self.cycle.__class__ = UntilClosed
            self.cycle.waiting_for_100_continue = False  # RFC 9110, 10.1.1
        self.rests_since = None
        self._unframed, self.headers = 0, []  # where trailers go: whether they come in time is chance

    def on_body(self, body: bytes) -> None:
        self._unframed = 0
        super().on_body(body)

    def _refuse(self, error: ApiError) -> None:
        """Without a receipt: there is no request that one could be about."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            body = error.to_json()
            fields = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[error.status] + fields % len(body) + body)
        self.transport.close()


def _taken(connection: Any) -> tuple[int, bool]:
    """How many bytes the client's machine has taken, and whether it still has to take some (`struct tcp_info`, linux/tcp.h)."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)
    except OSError:  # it is closed
        info = b""
    unacked, acked, unsent = info[24:28], info[120:128], info[144:148]
    return int.from_bytes(acked, sys.byteorder), any(unacked) or any(unsent)
