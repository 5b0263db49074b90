"""The log of receipts, from the queue of a worker to what anybody can read of it."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation.tlog import (
    TileReader,
    check_logged,
    log_key,
    predecessor_entry,
    receipt_entry,
    verify_checkpoint,
)
from enclave_server.receipts import log as receipt_log
from enclave_server.receipts import store as log_store
from enclave_server.receipts.log import ReceiptLog
from enclave_server.receipts.store import last_checkpoint, read_file
from enclave_server.settings import Settings
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.receipts.test_store import begin
from tests.processes import alive, running_with, until
from tests.served import Served, served
from tests.servers import FakeEngine, LiveGateway, gateway_settings, live_gateway


@pytest.fixture
def logged(tmp_path: Path, engine: FakeEngine) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path, engine=engine, log_dir=tmp_path / "log", log_seconds=0.05) as gateway:
        yield gateway


def proof_of(origin: str, token: str, log: str = "") -> httpx.Response:
    name = receipt_entry(token).hex()
    return httpx.get(f"{origin}/log/{log}proof/{name}", verify=untrusting(), trust_env=False)


def until_proven(origin: str, token: str) -> bytes:
    until(lambda: proof_of(origin, token).status_code == 200)
    return proof_of(origin, token).content


def test_every_kind_of_answer_is_logged(logged: LiveGateway) -> None:
    """Plain answers, streams and errors are in the log under the statement's key; a receipt that was never given is not."""
    with Caller(logged.origin, logged.policy_text) as caller:
        key = log_key(caller.verdict.statement)
        answers = [
            caller.chat("hello"),
            caller.chat("hello", stream=True),
            caller.get("/v1/nothing"),
            caller.get("/v1/models"),
        ]
        for answer in answers:
            check_logged(until_proven(logged.origin, answer.token), answer.token, key)
        missing = proof_of(logged.origin, "never.given.out")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_logged")


def test_what_is_served(logged: LiveGateway) -> None:
    """Checkpoint and tiles with the types and caching of tlog-tiles, and nothing else of the disk."""
    with Caller(logged.origin, logged.policy_text) as caller:
        until_proven(logged.origin, caller.chat("hello").token)
        key = log_key(caller.verdict.statement)
        http = caller.http
        found = http.get("/log/checkpoint")
        assert found.headers["content-type"] == "text/plain; charset=utf-8"
        assert found.headers["cache-control"] == "no-cache"
        size = verify_checkpoint(found.content, key).size
        assert size == 2
        tile = http.get(f"/log/tile/0/000.p/{size}")
        assert tile.headers["content-type"] == "application/octet-stream"
        assert "immutable" in tile.headers["cache-control"]
        assert len(tile.content) == 64
        assert len(http.get(f"/log/tile/entries/000.p/{size}").content) == 68
        assert http.get(f"/log/{key.key.hex()}/checkpoint").content == found.content
        assert http.get("/log/previous").content == b""
        for path in (
            "",
            "index.sqlite",
            "tile/0/000",
            "tile/64/000",
            "latest",
            "..%2flatest",
            "tile/0/%2e%2e",
        ):
            assert http.get(f"/log/{path}").status_code == 404, path
        assert http.post("/log/checkpoint").status_code == 405


def test_successors_of_an_identity_have_the_same_log(logged: LiveGateway) -> None:
    """The log's key stays for the boot: receipts of both identities are in one log, and no statement names another."""
    with Caller(logged.origin, logged.policy_text) as caller:
        before, key = caller.chat("hello").token, log_key(caller.verdict.statement)
    logged.succeed()
    with Caller(logged.origin, logged.policy_text) as caller:
        after, statement = caller.chat("hello").token, caller.verdict.statement
        assert log_key(statement) == key
    first, second = (
        check_logged(until_proven(logged.origin, token), token, key) for token in (before, after)
    )
    assert (first[0].index, second[0].index) == (1, 2)


def test_a_first_boot_that_ended_early(tmp_path: Path) -> None:
    """What a crash of the very first boot left, before it named its log, is no reason to refuse the next one."""
    for begun in (True, False):
        store = begin(tmp_path)
        (tmp_path / "latest").unlink()
        if not begun:
            (store.folder / "checkpoint").unlink()
    assert read_file(begin(tmp_path).folder, "previous") == b""


def test_an_earlier_boots_log_is_still_served(logged: LiveGateway) -> None:
    """After a restart the old log is at its key, and the new one begins with its end."""
    with Caller(logged.origin, logged.policy_text) as caller:
        token, old = caller.chat("hello").token, log_key(caller.verdict.statement)
        until_proven(logged.origin, token)
    logged.restart()
    with Caller(logged.origin, logged.policy_text) as caller:
        assert log_key(caller.verdict.statement) != old
        assert proof_of(logged.origin, token).status_code == 404
        check_logged(proof_of(logged.origin, token, f"{old.key.hex()}/").content, token, old)
        ended = caller.http.get(f"/log/{old.key.hex()}/checkpoint").content
        assert caller.http.get("/log/previous").content == ended


def test_a_gateway_that_cannot_log_answers_nothing(
    logged: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ready, and refusals that are signed and not logged; when it can again, what was given out before is logged."""
    write, full = log_store.write_file, True

    def failing(path: Path, data: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(log_store, "write_file", failing)
    with Caller(logged.origin, logged.policy_text) as caller:
        given = caller.chat("hello").token
        until(lambda: caller.http.get("/readyz").json() == {"ready": False, "reason": "log_failed"})
        refused = caller.chat("hello")
        assert (refused.status, refused.error) == (503, "log_unavailable")
        assert caller.http.get("/log/checkpoint").status_code == 200
        full = False
        until(lambda: caller.http.get("/readyz").json()["ready"])
        key = log_key(caller.verdict.statement)
        check_logged(until_proven(logged.origin, given), given, key)
        assert proof_of(logged.origin, refused.token).status_code == 404
        assert caller.chat("hello").status == 200


async def test_a_queue_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose queue nobody empties says so, and takes no more requests."""
    monkeypatch.setattr(receipt_log, "MAX_WAITING", 6000)
    log = ReceiptLog.open(gateway_settings(tmp_path, log_dir=tmp_path / "log"))
    assert log is not None
    queue = log.queue()
    for number in range(20_000):
        queue.add(str(number))
    assert queue.unready == "log_behind"
    async with log.writing():
        await queue.drain()
    assert (queue.waiting, queue.unready or "") == (0, "")
    key = log.key
    data = read_file(tmp_path / "log" / key.key.hex(), "checkpoint")
    assert data is not None
    assert verify_checkpoint(data, key).size == 20_001
    log.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"log_url": "https://log.example"},
        {"log_url": "https://log.example", "log_dir": "log"},
        {"log_url": "https://log.example", "log_dir": "log", "log_key": "nothing"},
        {"log_key": "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"},
        {"log_dir": "log", "log_seconds": 0},
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A log elsewhere needs its key, and a place for the index."""
    with pytest.raises(ValueError, match="log_"):
        gateway_settings(tmp_path, **changes)


def test_no_log_unless_asked_for(gateway: LiveGateway) -> None:
    """Without log_dir there is no key in the statement and no route."""
    with Caller(gateway.origin, gateway.policy_text) as caller:
        assert caller.verdict.statement.keys.log_ed25519 is None
        assert caller.http.get("/log/checkpoint").status_code == 404


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return {
        **fake_settings(tmp_path, chunks=3),
        "drain_seconds": 3,
        "workers": 2,
        "log_dir": str(tmp_path / "log"),
        "log_seconds": 0.2,
    }


@pytest.fixture
def two_workers(tmp_path: Path, values: dict[str, Any]) -> Iterator[Served]:
    with served(tmp_path / "gateway", **values) as running:
        yield running


def test_every_receipt_of_two_workers_is_logged(two_workers: Served, tmp_path: Path) -> None:
    """All that is given out until the gateway is told to stop is in the log when it has ended, once each."""
    tokens, policy = [], two_workers.policy()
    with Caller(two_workers.origin, policy) as caller:
        key = log_key(caller.verdict.statement)
    for number in range(12):  # each over a connection of its own, so that both workers get some
        with Caller(two_workers.origin, policy) as caller:
            tokens += [caller.chat("hello", stream=number % 2 == 0).token, caller.get("/v1/nothing").token]
    check_logged(until_proven(two_workers.origin, tokens[0]), tokens[0], key)
    assert two_workers.terminate() == 0
    folder = tmp_path / "log" / key.key.hex()
    data = read_file(folder, "checkpoint")
    assert data is not None
    size = verify_checkpoint(data, key).size
    read = TileReader(lambda path: read_file(folder, path), size)
    entries = [read.entry(i) for i in range(size)]
    assert entries[0] == predecessor_entry(b"")
    assert sorted(entries[1:]) == sorted(map(receipt_entry, tokens))
    with sqlite3.connect(folder / "index.sqlite") as database:
        assert dict(database.execute("select hash, number from entry")) == {
            e: i for i, e in enumerate(entries)
        }
    database.close()
    _says_nothing(tmp_path / "log", tokens)


def _says_nothing(folder: Path, tokens: list[str]) -> None:
    """Nothing of a receipt but its digest is on disk."""
    everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for token in tokens:
        assert token.split(".")[1].encode()[:40] not in everything


def test_a_kill_of_the_whole_gateway(two_workers: Served, tmp_path: Path) -> None:
    """After kill -9 of everybody the log is whole as far as it goes, and the next start follows it."""
    with Caller(two_workers.origin, two_workers.policy()) as caller:
        token, old = caller.chat("hello").token, log_key(caller.verdict.statement)
    until_proven(two_workers.origin, token)
    everybody = running_with(str(two_workers.config))
    os.kill(two_workers.process.pid, signal.SIGKILL)
    two_workers.process.wait(60)
    until(lambda: not any(map(alive, everybody)))  # else the port may still be theirs
    ended = last_checkpoint(tmp_path / "log")
    two_workers.start()
    two_workers.until_ready(240)
    answer = httpx.get(f"{two_workers.origin}/log/previous", verify=untrusting(), trust_env=False)
    assert answer.content == ended
    check_logged(proof_of(two_workers.origin, token, f"{old.key.hex()}/").content, token, old)


def test_a_refused_directory_stops_the_start(tmp_path: Path, values: dict[str, Any]) -> None:
    """A damaged log is one clear line for the operator, and status 1."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "latest").write_text("nothing\n")
    gateway = Served(tmp_path / "gateway", values)
    gateway.start()
    assert gateway.process.wait(240) == 1
    assert "names no log" in gateway.log
    assert "Traceback" not in gateway.log


def test_settings_are_in_the_digest(tmp_path: Path) -> None:
    """Whether there is a log is part of the configuration that a client may pin."""
    plain = gateway_settings(tmp_path)
    assert isinstance(plain, Settings)
    assert plain.digest() != gateway_settings(tmp_path, log_dir=tmp_path / "log").digest()
