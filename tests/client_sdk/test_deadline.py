"""Servers that send a byte now and then, and meet no time-out of a single read: nobody waits for them for ever."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from client_sdk.deadline import Deadline
from client_sdk.doctor import Doctor, Health
from client_sdk.foreign.fetch import Provider, ask
from client_sdk.kept import fetch_evidence
from client_sdk.log_client import LogClient
from client_sdk.sealing import Channel
from tests.client_sdk.foreign_servers import SERVER

LIBRARIES = pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])
HEAD = b"HTTP/1.1 200 OK\r\n"
#: What comes at once, and what comes again and again after it.
DRIPS = {
    "handshake": (b"\x16\x03\x03\x40\x00", b"\x02"),
    "headers": (HEAD + b"x: ", b"a"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "body": (HEAD + b"Content-Length: 100000\r\n\r\n", b"a"),
    "body that ends with the connection": (HEAD + b"Connection: close\r\n\r\n{", b" "),
}
KINDS = pytest.mark.parametrize("kind", DRIPS)
#: CPython's `ssl` forgets to close a socket that was shut down before its handshake began.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """What is left of them goes here, and not in another file's test."""
    yield
    gc.collect()


@contextmanager
def dripping(folder: Path, kind: str) -> Iterator[str]:
    """A server of the worst sort; its origin."""
    key = SERVER.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(key + ssl.DER_cert_to_PEM_cert(SERVER.der).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    over, first_and_rest, threads = threading.Event(), DRIPS[kind], list[threading.Thread]()

    def serve(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            plain = kind == "handshake"
            with peer if plain else context.wrap_socket(peer, server_side=True) as spoken:
                spoken.recv(4096)
                spoken.sendall(first_and_rest[0])
                while not over.wait(0.02):
                    spoken.sendall(first_and_rest[1])

    def listen() -> None:
        with suppress(OSError):
            while True:
                threads.append(threading.Thread(target=serve, args=[server.accept()[0]], daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threads.append(threading.Thread(target=listen, daemon=True))
        threads[0].start()
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(60)


def ended(work: Callable[[], Any]) -> AttestationError:
    """The error of something that must not go on for ever; a thread keeps this test from it."""
    found: list[AttestationError] = []

    def attempt() -> None:
        try:
            work()
        except AttestationError as exc:
            found.append(exc)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it would have waited for ever"
    return found[0]


@KINDS
@LIBRARIES
def test_evidence_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, http: Any, kind: str) -> None:
    """Else one attestation would hold the session, and everybody who waits for it, for weeks."""
    monkeypatch.setattr("client_sdk.kept.EVIDENCE_SECONDS", 0.5)
    with dripping(tmp_path, kind) as origin:
        error = ended(lambda: fetch_evidence(http, origin, {}, bytes(32)))
    assert isinstance(error, UnavailableError)
    assert error.check is Check.EVIDENCE_FETCH
    assert "not all of it came within" in error.detail


@KINDS
@pytest.mark.parametrize("provider", [Provider.AUTO, Provider.TINFOIL])
def test_other_providers_answers_have_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider, kind: str
) -> None:
    """`attested verify URL` of somebody who never finishes."""
    monkeypatch.setattr("client_sdk.foreign.fetch.ASK_SECONDS", 0.5)
    with dripping(tmp_path, kind) as origin:
        error = ended(lambda: ask(origin, provider))
    assert error.check is Check.FOREIGN_FETCH
    assert "not all of it came within" in error.detail


@KINDS
def test_a_logs_answers_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """`attested log`, whatever of a log it reads; and the next question has all of its time again."""
    monkeypatch.setattr("client_sdk.log_client.FETCH_SECONDS", 0.5)
    with dripping(tmp_path, kind) as origin, LogClient.of_gateway(origin) as client:
        for _ in range(2):
            error = ended(lambda: client.fetch("checkpoint"))
            assert error.check is Check.LOG_FETCH
            assert "not all of checkpoint came within" in error.detail


@pytest.mark.parametrize("kind", ["headers", "body"])
def test_a_readiness_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The doctor reads of it what it shows, and waits no longer than for anything else."""
    monkeypatch.setattr("client_sdk.doctor.Deadline", lambda _: Deadline(0.5))
    monkeypatch.setattr("client_sdk.kept.EVIDENCE_SECONDS", 0.5)
    with dripping(tmp_path, kind) as origin:
        steps = list(Doctor(origin, None, Channel.SEALED, datetime.now(UTC), vendors=False).examine())
    assert next(s for s in steps if s.step == "evidence").health is Health.FAILED


def test_a_connection_that_comes_too_late_is_broken_at_once() -> None:
    """The time may be up while a connection is being made."""
    with socket.create_server(("127.0.0.1", 0)) as server, Deadline(60) as deadline:
        deadline._break()
        peer = socket.create_connection(server.getsockname())

        class Stream:
            def get_extra_info(self, _: str) -> socket.socket:
                return peer

        deadline.trace("connection.connect_tcp.complete", {"return_value": Stream()})
        assert peer.recv(1) == b""
        peer.close()
