"""Receipts in a log that somebody else runs: a stand-in that takes and serves the bytes that Tessera's servers do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.checks import Check
from attestation.errors import UnavailableError
from attestation.tlog import (
    Checkpoint,
    Tree,
    VerifierKey,
    check_logged,
    log_key,
    receipt_entry,
    sign_checkpoint,
)
from client_sdk.log_client import LogClient, visit
from enclave_server.receipts.remote import RemoteLog, fetch
from tests.caller import Caller, untrusting
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, live_gateway


class Tessera:
    """`POST /add` answers with the index in decimal; entries are in the tree when a batch is integrated, a moment later."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.key = VerifierKey(name="example.com/receipts", key=self._private.public_key().public_bytes_raw())
        self.status, self.reply = 200, "{}"
        self.entries: list[bytes] = []
        self._tree, self._files = Tree(), dict[str, bytes]()
        self._lock = threading.Lock()
        self.integrate()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                entry = self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(*outer.add(self.path, entry))

            def do_GET(self) -> None:
                data = outer._files.get(self.path.removeprefix("/receipts/"))
                self._answer(404 if data is None else outer.status, data or b"404 page not found\n")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/receipts"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def add(self, path: str, entry: bytes) -> tuple[int, bytes]:
        if path != "/receipts/add" or self.status != 200:
            return self.status if self.status != 200 else 404, b"no"
        with self._lock:
            self.entries.append(entry)
            return 200, self.reply.format(len(self.entries) - 1).encode()

    def integrate(self) -> None:
        with self._lock:
            self._tree, files = self._tree.extend(self.entries[self._tree.size :])
            head = Checkpoint(origin=self.key.name, size=self._tree.size, root=self._tree.root)
            self._files |= {**files, "checkpoint": sign_checkpoint(head, self._private)}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)


@pytest.fixture
def tessera() -> Iterator[Tessera]:
    log = Tessera()
    log.entries.append(b"an entry of somebody else's")
    yield log
    log.close()


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine, tessera: Tessera) -> Iterator[LiveGateway]:
    changes: dict[str, Any] = {"log_url": tessera.url, "log_key": str(tessera.key)}
    with live_gateway(
        tmp_path, engine=engine, log_dir=tmp_path / "log", log_seconds=0.05, **changes
    ) as running:
        yield running


def ready(gateway: LiveGateway) -> bool:
    return httpx.get(f"{gateway.origin}/readyz", verify=untrusting(), trust_env=False).status_code == 200


def test_receipts_go_to_the_log_elsewhere(gateway: LiveGateway, tessera: Tessera) -> None:
    """The statement names the other's key and origin; each receipt's proof holds once it is integrated, and not before."""
    until(lambda: ready(gateway))
    with (
        Caller(gateway.origin, gateway.policy_text) as caller,
        LogClient.of_gateway(gateway.origin) as client,
    ):
        statement = caller.verdict.statement
        assert log_key(statement) == tessera.key
        tokens = [caller.chat("hello").token for _ in range(5)]
        until(lambda: len(tessera.entries) == 6)
        assert sorted(tessera.entries[1:]) == sorted(map(receipt_entry, tokens))
        with pytest.raises(UnavailableError):
            client.prove(tokens[0], statement)
        tessera.integrate()
        for token in tokens:
            check_logged(client.prove(token, statement, 5), token, tessera.key)
        seen = visit(client.fetch_of, tessera.key, None).note
        assert caller.http.get("/log/previous").status_code == 404
    gateway.restart()
    with LogClient(tessera.url) as direct, LogClient.of_gateway(gateway.origin) as client:
        found = visit(client.fetch_of, tessera.key, seen)
        assert (found.boots, found.checkpoint.size) == (0, 6)
        assert visit(lambda _, path: direct.fetch(path), tessera.key, seen) == found
        check_logged(client.prove(tokens[0], statement), tokens[0], tessera.key)


def test_a_log_that_does_not_answer(gateway: LiveGateway, tessera: Tessera) -> None:
    """The gateway is not ready while the log fails, and what was given out before arrives later."""
    until(lambda: ready(gateway))
    with Caller(gateway.origin, gateway.policy_text) as caller:
        tessera.status = 503
        token = caller.chat("hello").token
        until(lambda: not ready(gateway))
        assert caller.chat("hello").error == "log_unavailable"
        assert caller.http.get("/log/checkpoint").json()["error"]["code"] == "log_unavailable"
        tessera.status = 200
        until(lambda: ready(gateway))
    assert receipt_entry(token) in tessera.entries


@pytest.mark.parametrize("reply", ["index {}", "-1", ""])
async def test_an_answer_that_is_no_index(tmp_path: Path, tessera: Tessera, reply: str) -> None:
    """Whatever else comes back is a failure, and tried again."""
    log = RemoteLog(tessera.url, tessera.key, tmp_path)
    tessera.reply = reply
    with pytest.raises(Exception, match="index"):
        await log.append([bytes(32)])
    tessera.reply = "{}\n"
    await log.append([bytes(32)])


async def test_another_key_at_the_address(tmp_path: Path, tessera: Tessera) -> None:
    """Nothing is handed to a log that is not signed by the key of the settings."""
    other = VerifierKey(name=tessera.key.name, key=bytes(32))
    with pytest.raises(Exception, match="not signed by"):
        await RemoteLog(tessera.url, other, tmp_path).append([bytes(32)])
    assert tessera.entries == [b"an entry of somebody else's"]


def test_reading_what_does_not_answer() -> None:
    """A log that is not there leaves the question open."""
    with pytest.raises(UnavailableError) as error:
        fetch("http://127.0.0.1:1", "checkpoint")
    assert error.value.check is Check.LOG_FETCH
