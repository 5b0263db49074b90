"""An engine that writes exactly the bytes of each test, and the pool of connections to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from enclave_server.engine.upstream import Upstream

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CLOSE = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"


class Peer:
    """One connection, seen from the engine's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0]
        return head + await self.reader.readexactly(int(length or 0))

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_closed(self) -> None:
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


class Script:
    """An engine that does, on its n-th connection, what `answering(peer, n)` says."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.gone = asyncio.Event()  # a client closed a connection


@asynccontextmanager
async def engine(
    folder: Path, answering: Callable[[Peer, Script], Awaitable[None]], *, read_seconds: float = 60
) -> AsyncIterator[tuple[Upstream, Script]]:
    script = Script()
    tasks: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script.connections += 1
        tasks.append(asyncio.current_task())
        try:
            await answering(Peer(reader, writer), script)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_unix_server(serve, folder / "s", limit=2**26)
    async with Upstream(folder / "s", read_seconds=read_seconds) as pool:
        yield pool, script
    server.close()
    await asyncio.wait_for(asyncio.gather(*filter(None, tasks)), 60)  # every peer saw its connection closed
    await asyncio.sleep(0.01)
    (folder / "s").unlink(missing_ok=True)


async def well(peer: Peer, script: Script) -> None:
    while True:
        script.requests.append(await peer.request())
        await peer.write(PLAIN)


async def ask(pool: Upstream, body: bytes = b"{}") -> bytes:
    async with pool.request("POST", "/v1/completions", body) as answer:
        assert answer.status == 200
        return await answer.read(1 << 20)


def chunks(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
