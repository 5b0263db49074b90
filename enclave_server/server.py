"""uvicorn, set up as this gateway needs it. Missing speed-ups are errors, not a silent fallback."""

from __future__ import annotations

import asyncio
import socket
import time

import httptools
import uvicorn
import uvloop

from enclave_server.app import App
from enclave_server.identity import Identity, tls_context
from enclave_server.settings import Settings

_LAST_WORDS_SECONDS = 2.0
_REQUIRED = (uvloop, httptools)  # imported here, so that an install without them fails at start


class Server(uvicorn.Server):
    """uvicorn with a shutdown that lets answers finish, and does not wait for idle clients to close TLS politely."""

    def __init__(self, config: uvicorn.Config, *, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds = drain_seconds

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


def make_server(app: App, settings: Settings, identity: Identity) -> Server:
    """A server for one process: TLS 1.3 with this boot's key, no access log, no headers of its own."""
    context = tls_context(identity)
    return Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,  # all answers have ended by then, see `Server.shutdown`
            ssl_context_factory=lambda _config, _default: context,
        ),
        drain_seconds=settings.drain_seconds,
    )


def listen(settings: Settings) -> list[socket.socket]:
    """A socket for each worker, taken before anything slow is started; the kernel spreads connections over them."""
    alone = _bind(settings.host, settings.port, shared=False)  # fails where somebody else listens
    if settings.workers == 1:
        return [alone]
    port: int = alone.getsockname()[1]
    alone.close()
    return [_bind(settings.host, port, shared=True) for _ in range(settings.workers)]


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener
