"""The short way of a stream's bytes to the client: into uvicorn's transport, past its `send`."""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from enclave_server.asgi import Send


def chunk_writer(send: Send) -> Callable[[bytes], bool] | None:
    """What writes as much as `send` would, once a response in chunks was begun; it says False where it would have to wait.

    None for any other `send` than uvicorn's own, so that nothing goes around a seal, or around middleware."""
    if getattr(send, "__func__", None) is not RequestResponseCycle.send:
        return None
    cycle: RequestResponseCycle = send.__self__  # type: ignore[attr-defined]
    if not cycle.chunked_encoding:
        return None
    flow, transport = cycle.flow, cycle.transport

    def write(data: bytes) -> bool:
        if flow.write_paused:
            return False
        if data and not cycle.disconnected:
            transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    return write
