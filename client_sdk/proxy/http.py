"""A small HTTP/1.1 server on asyncio and h11, for callers on the same machine.

A request is read whole, up to a limit, and then answered. A streamed answer goes out piece by piece as it is made; one
that fails ends without its last chunk, which no client takes for a whole answer. A caller that closes its sending side is
taken to have gone, and what was done for it is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol

import h11

Headers = Sequence[tuple[bytes, bytes]]

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_CONNECTIONS = 1024
MAX_AHEAD_BYTES = 64 * 1024  # of the next request, while this one is being answered
IDLE_SECONDS = 300.0  # a caller that sends nothing, between requests or inside one
LINGER_SECONDS = 2.0  # for a caller that still sends what nobody will read
_READ = 64 * 1024


class Body(Protocol):
    """A body that is made on the way. It is closed once, also when nobody began to read it."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request but for its body. Names of headers are in lower case."""

    method: str
    target: str
    headers: Headers
    version: bytes = b"1.1"

    def all(self, name: bytes) -> list[bytes]:
        """Every value of one header."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back. A body that is made on the way may have trailers, known at its end."""

    status: int
    headers: Headers
    body: bytes | Body = b""
    trailers: Callable[[], Headers] = tuple


class BrokenStreamError(Exception):
    """A streamed body that cannot be completed. `instead` is the answer for a caller that has read none of it."""

    def __init__(self, instead: Answer) -> None:
        super().__init__("the stream broke")
        self.instead = instead


Guard = Callable[[Head], Answer | None]  # an answer for a request whose body is not even read
Handle = Callable[[Head, bytes], Awaitable[Answer]]


class Server:
    """Accepts connections until it is stopped."""

    def __init__(
        self,
        guard: Guard,
        handle: Handle,
        error: Callable[[int, str, str], Answer],
        *,
        max_body: int = MAX_BODY_BYTES,
    ) -> None:
        self.guard, self.handle, self.error, self.max_body = guard, handle, error, max_body
        self.stopping = False
        self._connections: dict[_Connection, asyncio.Task[Any]] = {}
        self._listener: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was given, or chosen for 0."""
        self._listener = await asyncio.start_server(self._accept, host, port)
        chosen: int = self._listener.sockets[0].getsockname()[1]
        return chosen

    async def stop(self, seconds: float) -> None:
        """Take no request any more, give those under way so long to end, and cut off the rest."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection, task in self._connections.items():
            if not connection.busy:
                task.cancel()
        if tasks := set(self._connections.values()):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if self.stopping or len(self._connections) >= MAX_CONNECTIONS or task is None:
            writer.transport.abort()
            return
        connection = _Connection(self, reader, writer)
        self._connections[connection] = task
        try:
            await connection.serve()
        except asyncio.CancelledError:
            if not self.stopping:  # Python 3.11 reports a cancelled connection as an error
                raise
        finally:
            del self._connections[connection]
            writer.close()  # what was written still arrives


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


class _Connection:
    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.busy = False

    async def serve(self) -> None:
        try:
            while await self._one() and not self._server.stopping:
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as exc:
            await self._malformed(exc)
        except (h11.LocalProtocolError, BrokenStreamError, _GoneError, OSError, TimeoutError):
            pass  # there is nobody to tell, or what there was to tell has been told

    async def _one(self) -> bool:
        """One request and its answer; whether another may follow."""
        event = await self._event()
        if not isinstance(event, h11.Request):
            return False
        head = Head(
            method=event.method.decode("ascii"),
            target=event.target.decode("ascii"),
            headers=list(event.headers),
            version=event.http_version,
        )
        self.busy = True
        answer = self._server.guard(head)
        if answer is None:
            body = await self._body()
            if body is not None:
                await self._attended(self._answer(head, body))
                self.busy = False
                return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
            answer = self._server.error(
                413, "request_too_large", f"expected at most {self._server.max_body} bytes"
            )
        await self._refuse(head, answer)
        return False

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(h11.InformationalResponse(status_code=100, headers=[]))
            async with asyncio.timeout(IDLE_SECONDS):
                self._http.receive_data(await self._reader.read(_READ))
        return event

    async def _body(self) -> bytes | None:
        """The request's body; None when it is too large."""
        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise _GoneError
            body += event.data
            if len(body) > self._server.max_body:
                return None
        return bytes(body)

    async def _attended(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work` for as long as there is somebody who waits for it."""
        working = asyncio.create_task(work)
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone = not working.done()
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
        if gone:
            raise _GoneError
        working.result()

    async def _watch(self) -> None:
        """Return when the caller has gone. What it sends meanwhile is the start of its next request."""
        ahead = 0
        while data := await self._reader.read(_READ):
            self._http.receive_data(data)
            ahead += len(data)
            if ahead > MAX_AHEAD_BYTES:
                await asyncio.get_running_loop().create_future()

    async def _answer(self, head: Head, body: bytes) -> None:
        answer = await self._server.handle(head, body)
        if isinstance(answer.body, bytes):
            await self._send(head, answer.status, answer.headers, answer.body)
            return
        async with aclosing(answer.body) as stream:
            if head.version < b"1.1":  # such a caller could not tell a cut stream from a whole one
                await self._send_whole(head, answer, stream)
                return
            if head.method == "HEAD":
                await self._send(head, answer.status, answer.headers, b"")
                return
            await self._write(h11.Response(status_code=answer.status, headers=list(answer.headers)))
            async for part in stream:
                await self._write(h11.Data(data=part))
        trailers = answer.trailers() if b"trailers" in b",".join(head.all(b"te")).lower() else ()
        await self._write(h11.EndOfMessage(headers=list(trailers)))

    async def _send_whole(self, head: Head, answer: Answer, stream: Body) -> None:
        body = bytearray()
        try:
            async for part in stream:
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise _GoneError
        except BrokenStreamError as broken:
            answer, body = broken.instead, bytearray()
            if isinstance(answer.body, bytes):
                body += answer.body
        await self._send(head, answer.status, answer.headers, bytes(body))

    async def _send(self, head: Head, status: int, headers: Headers, body: bytes) -> None:
        every = list(headers)
        if status not in {204, 304}:
            every.append((b"content-length", str(len(body)).encode()))
        data = self._http.send(h11.Response(status_code=status, headers=every)) or b""
        if body and head.method != "HEAD":
            data += self._http.send(h11.Data(data=body)) or b""
        self._writer.write(data + (self._http.send(h11.EndOfMessage()) or b""))
        await self._writer.drain()

    async def _write(self, event: Any) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()

    async def _refuse(self, head: Head, answer: Answer) -> None:
        """Answer before the request was read, and listen for a while: a reset would take the answer with it."""
        body = answer.body if isinstance(answer.body, bytes) else b""
        headers = [*answer.headers, (b"connection", b"close")]
        await self._send(head, answer.status, headers, body)
        self._writer.write_eof()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await self._reader.read(_READ):
                    pass

    async def _malformed(self, exc: h11.RemoteProtocolError) -> None:
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        answer = self._server.error(exc.error_status_hint, "malformed_request", "this is no HTTP/1.1 request")
        with suppress(OSError, h11.LocalProtocolError):
            await self._refuse(Head(method="GET", target="/", headers=()), answer)


def date_header() -> tuple[bytes, bytes]:
    """The time, for answers of one's own."""
    return b"date", formatdate(usegmt=True).encode()
