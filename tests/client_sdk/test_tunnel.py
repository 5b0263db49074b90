"""Clients behind a proxy: a tunnel that is asked of it is no request, and nothing leaves on account of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx
import pytest

from attestation.errors import MalformedError
from client_sdk import Trust, attested_transport
from client_sdk.kept import EVIDENCE_PATH
from tests.client_sdk.conftest import Recorded
from tests.client_sdk.transported import Clock
from tests.client_sdk.trusting import AGE, ASKED, CHAT


class Tunnels:
    """A proxy that does what CONNECT asks, after `before` was called."""

    def __init__(self, before: Callable[[int], None]) -> None:
        self._before, self._count = before, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with ExitStack() as ends:
            while True:
                try:
                    client = ends.enter_context(self._listener.accept()[0])
                except OSError:
                    break
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    head += client.recv(1)
                host, port = head.split()[1].decode().split(":")
                self._count += 1
                self._before(self._count)
                server = ends.enter_context(socket.create_connection((host, int(port))))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for one, other in ((client, server), (server, client)):
                    copy = threading.Thread(target=self._copy, args=(one, other))
                    copy.start()
                    ends.callback(copy.join)

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.mark.parametrize("channel", ["sealed+pinned", "pinned"])
def test_a_verdict_that_ends_while_a_tunnel_is_made(recorded: Recorded, channel: Any) -> None:
    """What is asked of a proxy is not the request: the verdict has to hold when the tunnel is there, too."""
    clock, origin = Clock(), recorded.gateway.origin

    def before(number: int) -> None:
        if number == 2:  # the first was for the evidence
            clock.ahead, recorded.recorder.corrupt = AGE * 1.1, True

    with closing(Tunnels(before)) as proxy:
        trust = Trust(recorded.gateway.policy_text, clock=clock, max_age=AGE)
        transport = attested_transport(trust, channel=channel, proxy=proxy.url)
        with httpx.Client(transport=transport, timeout=60) as client, pytest.raises(MalformedError):
            client.post(origin + CHAT, json=ASKED)
    assert recorded.recorder.paths == [EVIDENCE_PATH, EVIDENCE_PATH]
