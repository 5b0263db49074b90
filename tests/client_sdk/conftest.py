"""A gateway that remembers what reached it, and one that somebody else answers for."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client_sdk.kept import EVIDENCE_PATH
from tests.caller import untrusting
from tests.fake_engine import pause
from tests.servers import FakeEngine, LiveGateway, live_gateway


@dataclass
class Recorder:
    """An ASGI middleware that keeps everything that a client sent."""

    requests: list[tuple[str, dict[bytes, bytes], bytes]] = field(default_factory=list)
    attested: int = 0  # requests for evidence that were given some
    delay: float = 0.0  # seconds before each answer to a request for evidence; 0 lets go what waits
    corrupt: bool = False  # evidence documents are no JSON any more

    def wrap(self, app: Any) -> Any:
        async def recorded(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            headers, at = dict(scope["headers"]), len(self.requests)
            self.requests.append((scope["path"], headers, b""))

            async def keep() -> Any:
                message = await receive()
                path, _, body = self.requests[at]
                self.requests[at] = (path, headers, body + message.get("body", b""))
                return message

            async def given(message: Any) -> None:
                self.attested += message.get("status") == 200
                if self.corrupt and message["type"] == "http.response.body":
                    message = {**message, "body": b"?" * len(message["body"])}
                await send(message)

            evidence = scope["path"] == EVIDENCE_PATH
            if evidence:
                await pause(lambda: self.delay)
            await app(scope, keep, given if evidence else send)

        return recorded

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.requests]

    def attestations(self) -> int:
        return self.paths.count(EVIDENCE_PATH)


@dataclass
class Recorded:
    gateway: LiveGateway
    recorder: Recorder


@pytest.fixture
def recorded(tmp_path: Path, engine: FakeEngine) -> Iterator[Recorded]:
    """The real gateway, and all that reached it."""
    recorder = Recorder()
    with live_gateway(tmp_path, engine=engine, wrap=recorder.wrap) as gateway:
        yield Recorded(gateway, recorder)


def certificate(folder: Path) -> Path:
    """A key and a self-signed certificate that nobody has attested."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "somebody.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + cert.public_bytes(serialization.Encoding.PEM)
    )
    return pem


class Relay:
    """Somebody with a TLS key of their own, who hands on a real enclave's evidence and keeps all that is said to them."""

    def __init__(self, folder: Path, behind: LiveGateway) -> None:
        self.behind = behind
        self.instead: bytes | None = None  # of the enclave's evidence
        self.status = 200
        self.heard = b""
        self.connections = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate(folder))
        self._anybody = untrusting()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.origin = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(60)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            plain.settimeout(60)
            try:
                with self._context.wrap_socket(plain, server_side=True) as peer:
                    self._talk(peer)
            except OSError:
                plain.close()

    def _talk(self, peer: ssl.SSLSocket) -> None:
        while data := peer.recv(65536):
            self.heard += data
            target = data.split(b" ")[1].decode()
            if target.startswith("/.well-known/attestation"):
                with urlopen(self.behind.origin + target, context=self._anybody) as answer:  # noqa: S310
                    body, nonce = answer.read(), answer.headers["Attested-Nonce"]
                body = body if self.instead is None else self.instead
                head = f"HTTP/1.1 {self.status} OK\r\nContent-Length: {len(body)}\r\nAttested-Nonce: {nonce}\r\n\r\n"
                peer.sendall(head.encode() + body)


@pytest.fixture
def relay(tmp_path: Path, gateway: LiveGateway) -> Iterator[Relay]:
    """Somebody in front of the real gateway."""
    running = Relay(tmp_path, gateway)
    yield running
    running.close()


class Impostor:
    """Somebody with another TLS key, who for a while listens where an enclave was, and answers nothing."""

    def __init__(self, folder: Path, port: int) -> None:
        self.heard: list[bytes] = []  # over each connection whose handshake was finished
        self.connections = 0
        self.port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate(folder))

    def serve(self, seconds: float) -> None:
        """Until somebody has asked something, and for so long at most."""
        until = time.monotonic() + seconds
        with (
            socket.create_server(("127.0.0.1", self.port), backlog=1024) as server,
            ThreadPoolExecutor(32) as threads,
        ):
            server.settimeout(0.05)
            while time.monotonic() < until and not self.heard:
                with suppress(OSError):
                    threads.submit(self._listen, server.accept()[0])

    def _listen(self, plain: socket.socket) -> None:
        self.connections += 1
        plain.settimeout(60)
        with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as peer:
            if said := peer.recv(65536):
                self.heard.append(said)
        plain.close()


class Switch:
    """A TCP forwarder whose target can be changed for new connections, and whose connections can be cut."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.refuse = False  # new connections are closed at once
        self.connections = 0
        self._open: list[socket.socket] = []
        self._copying: list[threading.Thread] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.origin = f"https://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(60)
        self.cut()
        for thread in self._copying:
            thread.join(60)

    def cut(self) -> None:
        """Break every connection, as a lost network does."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                break
            self.connections += 1
            if self.refuse:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.port))
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                self._copying.append(threading.Thread(target=self._copy, args=[one, other], daemon=True))
                self._copying[-1].start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        one.close()
