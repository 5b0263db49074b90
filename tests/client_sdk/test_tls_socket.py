"""The TLS socket that takes what has arrived at once: nothing lost, added or let through, however the bytes are cut."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.checks import Check
from attestation.errors import VerificationError
from client_sdk.tls import pinned_context
from client_sdk.tls_socket import TLSSocket
from tests.client_sdk.foreign_servers import SERVER

PIN = sha256(SERVER.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
SIZE = 65536  # as HTTP libraries ask


class Peer:
    """A server whose records are made here, and are sent as a test wants them."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock, self._in, self._out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self.through = False  # the handshake

    def shake(self) -> None:
        """Until it is through, or the client goes away."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.sock.sendall(self._out.read())
                data = self.sock.recv(SIZE)
                if not data:
                    return
                self._in.write(data)
            else:
                self.through = True
                self.sock.sendall(self._out.read())
                return

    def record(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self._out.read()

    def farewell(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self._out.read()

    def heard(self) -> bytes:
        """What the client has sent by now."""
        try:
            self._in.write(self.sock.recv(1024 * SIZE, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return b""
        heard = b""
        while self._in.pending:
            heard += self.tls.read(SIZE)
        return heard


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    file: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    key = SERVER.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(key + ssl.DER_cert_to_PEM_cert(SERVER.der).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@contextmanager
def pair(server: ssl.SSLContext) -> Iterator[tuple[TLSSocket, Peer]]:
    """Both ends of a connection, after the handshake."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(theirs, server)
        with shaking(peer):
            made = pinned_context(PIN).wrap_socket(ours)
        yield made, peer


@contextmanager
def shaking(peer: Peer) -> Iterator[None]:
    """Meanwhile the peer does its part of the handshake."""
    thread = threading.Thread(target=peer.shake)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_records_that_are_there_come_together(server: ssl.SSLContext) -> None:
    """One read brings every record that has arrived, and the next one waits for more."""
    with pair(server) as (ours, peer):
        for data in (b"one", b"two", b"three"):
            peer.sock.sendall(peer.record(data))
        assert ours.recv(SIZE) == b"onetwothree"
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.recv(SIZE)


def test_a_record_that_has_not_come_is_waited_for_alone(server: ssl.SSLContext) -> None:
    """What is whole is not held back by the beginning of a record after it."""
    with pair(server) as (ours, peer):
        first, second = peer.record(b"whole"), peer.record(b"in two")
        peer.sock.sendall(first + second[:9])
        assert ours.recv(SIZE) == b"whole"
        peer.sock.sendall(second[9:])
        assert ours.recv(SIZE) == b"in two"


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.binary(min_size=1, max_size=40), min_size=1), cuts=st.lists(st.integers(1, 60)))
def test_any_cut_gives_the_same_bytes(server: ssl.SSLContext, texts: list[bytes], cuts: list[int]) -> None:
    """However the records are cut on their way, the text is the same."""
    with pair(server) as (ours, peer):
        ours.settimeout(20)
        wire, read = b"".join(map(peer.record, texts)) + peer.farewell(), b""
        for cut in cuts:
            peer.sock.sendall(wire[:cut])
            wire = wire[cut:]
        peer.sock.sendall(wire)
        while data := ours.recv(SIZE):
            read += data
        assert read == b"".join(texts)
        assert ours.recv(SIZE) == b""


def test_what_is_written_leaves_with_the_next_read(server: ssl.SSLContext) -> None:
    """Head and body of a request are one write, made when its answer is waited for."""
    with pair(server) as (ours, peer):
        assert (ours.send(b"head"), ours.send(memoryview(b"body"))) == (4, 4)
        assert peer.heard() == b""
        peer.sock.sendall(peer.record(b"answer"))
        assert ours.recv(SIZE) == b"answer"
        assert peer.heard() == b"headbody"


def test_much_leaves_before_a_read(server: ssl.SSLContext) -> None:
    """No more than a bounded part of a large body is held back."""
    body, sent = bytes(range(256)) * 2048, 0
    with pair(server) as (ours, peer):
        heard = b""
        while sent < len(body):
            sent += ours.send(memoryview(body)[sent:])
            heard += peer.heard()
        assert len(body) - len(heard) < 2 * SIZE
        peer.sock.sendall(peer.record(b"answer"))
        assert ours.recv(SIZE) == b"answer"
        assert heard + peer.heard() == body


def test_an_answer_before_the_request_was_taken(server: ssl.SSLContext) -> None:
    """A server that answers and goes is heard, although what was written does not reach it."""
    with pair(server) as (ours, peer):
        peer.sock.sendall(peer.record(b"413"))
        ours.send(b"request")
        peer.sock.close()
        assert (ours.recv(SIZE), ours.recv(SIZE)) == (b"413", b"")


def test_what_was_altered_is_not_given_out(server: ssl.SSLContext) -> None:
    """A record that is not the peer's is an error, as with any TLS."""
    with pair(server) as (ours, peer):
        record = bytearray(peer.record(b"text"))
        record[-1] ^= 1
        peer.sock.sendall(record)
        with pytest.raises(ssl.SSLError):
            ours.recv(SIZE)


def test_another_key_gets_nothing(server: ssl.SSLContext) -> None:
    """Where the peer's key is not the pinned one, the client does not even end the handshake."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(theirs, server)
        with shaking(peer), pytest.raises(VerificationError) as caught:
            pinned_context(bytes(32)).wrap_socket(ours)
        assert (caught.value.check, ours.fileno()) == (Check.CHANNEL_TLS_KEY, -1)
        assert not peer.through
