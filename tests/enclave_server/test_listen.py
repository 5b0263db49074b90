"""The sockets that workers share."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from enclave_server.server import listen
from tests.servers import gateway_settings


@pytest.mark.parametrize("workers", [1, 2])
def test_the_next_boot_has_the_port_while_old_connections_linger(tmp_path: Path, workers: int) -> None:
    """A gateway that was killed with connections open can start again at once, with one worker as with several."""
    settings = gateway_settings(tmp_path, workers=workers)
    first = listen(settings)
    for listener in first:
        listener.listen()
    with socket.create_connection(("127.0.0.1", settings.port)) as caller:
        for listener in first:
            listener.setblocking(False)
        accepted: list[socket.socket] = []
        while not accepted:
            for listener in first:
                try:
                    accepted.append(listener.accept()[0])
                except BlockingIOError:
                    continue
        for end in (*accepted, *first):
            end.close()  # the server's end first: it is the one that lingers
        assert caller.recv(1) == b""
    for listener in listen(settings):
        listener.close()


def test_a_port_that_somebody_listens_at(tmp_path: Path) -> None:
    """Is not shared with them."""
    settings = gateway_settings(tmp_path, workers=2)
    with (
        socket.create_server(("127.0.0.1", settings.port)),
        pytest.raises(OSError, match=r"^host, port: .* in use"),
    ):
        listen(settings)
