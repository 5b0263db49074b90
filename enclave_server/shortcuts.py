"""The short ways between the application and uvicorn, past its `receive` and `send`, with the bytes that these would take and write.

There is none for any others than uvicorn's own, and a seal's body that was opened: nothing goes around a seal, or around
middleware (ADR 45)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from enclave_server.asgi import Receive, Send


class BodyThatIsHere:
    """ASGI's `receive`: a body that was inside another one, then whatever becomes of the connection."""

    __slots__ = ("_body", "_receive")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    def taken(self) -> bytes | None:
        body, self._body = self._body, None
        return body

    async def __call__(self) -> Mapping[str, Any]:
        body = self.taken()
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


def arrived_body(receive: Receive) -> bytes | None:
    """A request's body, if all of it is here before anybody asked for it; None where `receive` has to be asked.

    To be called once, and before the first `receive`."""
    if type(receive) is BodyThatIsHere:
        return receive.taken()
    if getattr(receive, "__func__", None) is not RequestResponseCycle.receive:
        return None
    cycle: RequestResponseCycle = receive.__self__  # type: ignore[attr-defined]
    if cycle.more_body or cycle.disconnected or cycle.response_complete or cycle.waiting_for_100_continue:
        return None
    body, cycle.body = bytes(cycle.body), bytearray()
    cycle.message_event.clear()  # so that `receive` waits for what comes next
    return body


def chunk_writer(send: Send) -> Callable[[bytes], bool] | None:
    """What writes as much as `send` would, once a response in chunks was begun; it says False where it would have to wait."""
    cycle = _cycle(send)
    if cycle is None or not cycle.chunked_encoding:
        return None
    flow, transport = cycle.flow, cycle.transport

    def write(data: bytes) -> bool:
        if flow.write_paused:
            return False
        if data and not cycle.disconnected:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return write


def write_whole(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """A whole answer in one write; False, and nothing is done, where `send` has to write it: it may wait, or refuse it.

    Names are in lower case, and the body's length is among the headers."""
    cycle = _cycle(send)
    if cycle is None or cycle.flow.write_paused or cycle.response_started or cycle.scope["method"] == "HEAD":
        return False
    if cycle.disconnected:
        return True
    fields = [b"%b: %b" % field for field in headers]
    together = b"".join(fields)
    if b"\r" in together or b"\n" in together or b"\0" in together:
        return False  # a header would be two
    if not cycle.keep_alive:
        fields.append(b"connection: close")
    head = STATUS_LINE[status] + b"\r\n".join(fields)
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(b"%b\r\n\r\n%b" % (head, body))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True


def _cycle(send: Send) -> RequestResponseCycle | None:
    if getattr(send, "__func__", None) is not RequestResponseCycle.send:
        return None
    cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
    return cycle
