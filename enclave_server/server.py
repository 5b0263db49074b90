"""uvicorn, set up as this gateway needs it. Missing speed-ups are errors, not a silent fallback."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import httptools
import uvicorn
import uvloop

from enclave_server.app import App
from enclave_server.framing import Framing
from enclave_server.heap import give_free_memory_back
from enclave_server.identities import STATE, Identities
from enclave_server.identity import TlsContext, keyless_context, tls_context
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings
from enclave_server.watch import CONNECTION, Connection

_LAST_WORDS_SECONDS = 2.0
IDLE_SECONDS = 75  # well after clients give an idle connection up: else a request may meet its closing
HANDSHAKE_SECONDS = 20  # in which TLS has to be agreed on: until then nothing counts the connection
_OTHER_FILES = 64  # libraries, listeners, databases
_LOOK_SECONDS = 1.0  # between two looks for statements that have ended
_HEAD, _HEAD_END = b"HTTP/1.1 ", b"\r\n\r\n"
_REQUIRED = (uvloop, httptools)  # imported here, so that an install without them fails at start


class Loop(uvloop.Loop):
    """uvloop's, which gives a handshake a minute."""

    async def create_server(self, *args: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = HANDSHAKE_SECONDS
        return await super().create_server(*args, **options)


class TlsKeys:
    """The context of each handshake: that of the identity which is current at that moment."""

    def __init__(self, identities: Identities, secrets: Secrets | None) -> None:
        self._identities, self._secrets = identities, secrets
        self._contexts: dict[bytes, TlsContext] = {}  # by the digest of the statement
        self.context = keyless_context()
        self.context.sni_callback = self._choose

    def forget(self, statement: bytes) -> None:
        self._contexts.pop(statement, None)

    def _choose(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """OpenSSL calls this for every ClientHello, also for one without a server's name."""
        identity = self._identities.current
        if identity.statement_digest not in self._contexts:
            issuer = self._secrets.tls_issuer if self._secrets and identity.statement.secrets else None
            self._contexts[identity.statement_digest] = tls_context(identity, issuer)
        handshake.context = self._contexts[identity.statement_digest]


class Server(uvicorn.Server):
    """uvicorn with a shutdown that lets answers finish, and does not wait for idle clients to close TLS politely.

    When a statement ends, the connections to its TLS key are closed: at once when idle, else after the answer."""

    def __init__(
        self, config: uvicorn.Config, identities: Identities, keys: TlsKeys, *, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._identities, self._keys, self._drain_seconds = identities, keys, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._answered, self._rested = 0, True

    def end(self) -> None:
        """Begin to shut down. From any thread, also before it runs and after."""
        self.should_exit = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self.end()

    async def main_loop(self) -> None:
        """Look once a second, and at once when it is to end: uvicorn's ten looks a second took a tenth of a lone stream's time."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_SECONDS)

    async def on_tick(self, counter: int) -> bool:
        for ended in self._identities.forget():
            self._keys.forget(ended.statement_digest)
            for connection in list(self.server_state.connections):
                if connection.app_state.get(STATE) == ended.statement_digest:
                    connection.shutdown()
        self._rest()
        return await super().on_tick(counter)

    def _rest(self) -> None:
        """Give back what free memory there is, once after work: when nothing was asked or answered since the last look."""
        state = self.server_state
        resting = state.total_requests == self._answered and not state.tasks
        if resting and not self._rested:
            give_free_memory_back()
        self._answered, self._rested = state.total_requests, resting

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state = self.server_state
        for listener in self.servers:
            listener.close()
        for connection in list(state.connections):
            connection.shutdown()  # closes it when idle, else after the answer it is giving
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=self._drain_seconds)
        for task in list(state.tasks):  # too late: `Inference` ends these with an error and its receipt
            task.cancel()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_LAST_WORDS_SECONDS)
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while state.connections and time.monotonic() < deadline:
            for connection in list(state.connections):
                if not connection.transport.get_write_buffer_size():
                    connection.transport.abort()
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)


QUIET: dict[str, Any] = {  # of uvicorn's, wherever something answers here: no log and no headers of its own
    "loop": f"{__name__}:{Loop.__name__}",
    "ws": "none",
    "interface": "asgi3",
    "log_config": None,
    "access_log": False,
    "proxy_headers": False,
    "server_header": False,
    "date_header": False,
    "timeout_graceful_shutdown": 1,  # all answers have ended by then, see `Server.shutdown`
}


def make_server(
    app: App, settings: Settings, identities: Identities, secrets: Secrets | None = None
) -> Server:
    """A server for one process: TLS 1.3 with the current key, no access log, no headers of its own."""
    keys = TlsKeys(identities, secrets)
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=_protocol(identities, most_connections(settings)),
            lifespan="on",
            timeout_keep_alive=IDLE_SECONDS,
            **QUIET,
            ssl_context_factory=lambda _config, _default: keys.context,
        ),
        identities,
        keys,
        drain_seconds=settings.drain_seconds,
    )


class Joining:
    """A client's transport, on which the head of an answer leaves together with what follows it in the same turn of the loop.

    uvicorn writes them one by one, and each write would be a system call, a packet and a TLS record."""

    __slots__ = ("_head", "_loop", "_transport", "abort", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""
        self.is_closing, self.abort = transport.is_closing, transport.abort

    def write(self, data: bytes) -> None:
        if self._head:
            self._transport.write(self._head + data)
            self._head = b""
        elif data.startswith(_HEAD) and data.endswith(_HEAD_END):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def get_write_buffer_size(self) -> int:
        return len(self._head) + self._transport.get_write_buffer_size()

    def _flush(self) -> None:
        if self._head and not self.is_closing():
            self._transport.write(self._head)
        self._head = b""


def most_connections(settings: Settings) -> int:
    """Of one worker. Its other files need room: each request may have a connection to the engine."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    return max(1, min(settings.max_connections, files - settings.max_in_flight - _OTHER_FILES))


def _protocol(identities: Identities, connections: int) -> type[Framing]:
    class Protocol(Framing):
        """Tells the application which connection a request came over and which statement's TLS key that has, and ends those
        whose statement is about to."""

        most = connections

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.transport = Joining(transport, self.loop)  # type: ignore[assignment]  # all that uvicorn calls
            handshake = transport.get_extra_info("ssl_object")
            self.client_connection = Connection(self.flow.resume_reading)
            self.app_state = {**self.app_state, CONNECTION: self.client_connection}
            if handshake is not None:  # None only in benchmarks without TLS
                self.app_state[STATE] = handshake.context.statement
                _acknowledge(transport.get_extra_info("socket"))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.client_connection.end()

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            statement = self.app_state.get(STATE)
            if statement is not None and identities.leaving(statement):
                self.cycle.keep_alive = False  # `Connection: close`: the next request comes over a new one

    return Protocol


def _acknowledge(connection: Any) -> None:
    """Say now that the handshake's end has come: nothing is answered to it, so that the kernel would for 40 ms, in which a client
    that does not set TCP_NODELAY keeps its first request."""
    with suppress(OSError):  # it is closed
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, True)


def listen(settings: Settings) -> list[socket.socket]:
    """A socket for each worker, taken before anything slow is started; the kernel spreads connections over them."""
    try:
        alone = _bind(settings.host, settings.port, shared=False)  # fails where somebody else listens
    except OSError as exc:
        raise OSError(
            f"host, port: cannot listen on {settings.host}:{settings.port}: {exc.strerror}"
        ) from exc
    if settings.workers == 1:
        return [alone]
    port: int = alone.getsockname()[1]
    alone.close()
    return [_bind(settings.host, port, shared=True) for _ in range(settings.workers)]


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(
        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
    )  # also while connections of one before linger
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
