"""The proxy in a thread, in front of what a test puts there, and a caller that speaks to it in bytes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from client_sdk._bodies import Clock
from client_sdk.proxy.guard import Guard
from client_sdk.proxy.running import Plan, Running
from client_sdk.sealing import Channel
from client_sdk.streams import Verify
from tests.servers import MODEL, _Thread, free_port

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
STREAMED = {**ASKED, "stream": True}


class LiveProxy:
    """One running proxy."""

    def __init__(self, running: Running, worker: _Thread, port: int) -> None:
        self.running, self.worker, self.port = running, worker, port
        self.proxy = running.proxy

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.origin}/v1"

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """All that comes back for these bytes, until the proxy closes the connection or says nothing for long."""
        with socket.create_connection(("127.0.0.1", self.port)) as caller:
            caller.settimeout(60)
            caller.sendall(data)
            if half_close:
                caller.shutdown(socket.SHUT_WR)
            return rest(caller)


def rest(caller: socket.socket) -> bytes:
    """What still comes."""
    answer = b""
    try:
        while data := caller.recv(65536):
            answer += data
    except TimeoutError:
        pass
    return answer


@contextmanager
def live_proxy(
    folder: Path,
    policy: str,
    *origins: str,
    channel: Channel = Channel.SEALED_AND_PINNED,
    verify: Verify = Verify.AS_YOU_READ,
    api_key: str | None = None,
    save: Path | None = None,
    guard: Guard | None = None,
    clock: Clock | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[LiveProxy]:
    """A proxy in front of these enclaves."""
    file = folder / "proxy-policy.toml"
    file.write_text(policy)
    plan = Plan(
        urls=[httpx.URL(origin) for origin in origins],
        policy=file,
        channel=channel,
        verify=verify,
        host="127.0.0.1",
        port=0,
        guard=guard or Guard(),
        api_key=api_key,
        save=save,
    )
    running, worker = Running(plan, clock=clock, monotonic=monotonic), _Thread()
    try:
        yield LiveProxy(running, worker, worker.run(running.server.start(plan.host, free_port())))
    finally:
        worker.run(_end(running))
        worker.close()


async def _end(running: Running) -> None:
    await running.server.stop(0)
    for upstream in running.proxy.upstreams:
        await upstream.close()
