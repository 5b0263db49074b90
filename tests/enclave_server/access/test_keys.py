"""API keys over real sockets: who gets in, who does not, and what is left of a key afterwards."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestation.receipt import Outcome, Usage
from enclave_server.access import keyring
from enclave_server.access.keys import PREFIX
from enclave_server.access.store import Store, StoreError
from tests.processes import until
from tests.servers import FakeEngine


def test_a_key_opens(start: Any, calling: Any, operator: Any, engine: FakeEngine) -> None:
    """A key lets its holder in, as OpenAI's clients send it and as Anthropic's do; the engine never sees it."""
    key = operator.create()
    gateway = start()
    assert calling(gateway, key).chat("hello").outcome is Outcome.COMPLETE
    anthropic = calling(gateway, None)
    assert anthropic.call("GET", "/v1/models", headers={"x-api-key": key}).status == 200
    assert key not in str(engine.requests)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"x-api-key": ""},
        {"authorization": "Basic a2V5"},
        {"authorization": f"Bearer {PREFIX}{'A' * 43}"},
        {"authorization": "Bearer \xff\xfe"},
        {"x-api-key": "wrong"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions"])
def test_no_key(start: Any, calling: Any, engine: FakeEngine, headers: dict[str, str], path: str) -> None:
    """Without a known key every route is 401 in OpenAI's shape, signed, and the engine hears nothing."""
    method, body = ("GET", b"") if path == "/v1/models" else ("POST", b"{}")
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = calling(start(), None).call(method, path, body, raw)
    assert (answer.status, answer.error, answer.outcome) == (401, "invalid_api_key", Outcome.ERROR)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert engine.requests == []


def test_two_keys_at_once(start: Any, calling: Any, operator: Any) -> None:
    """Which of two keys counts must not be a guess."""
    key = operator.create()
    answer = calling(start(), key).call("GET", "/v1/models", headers={"x-api-key": key})
    assert (answer.status, answer.error) == (401, "invalid_api_key")


def test_revoked_while_running(start: Any, calling: Any, operator: Any) -> None:
    """A key made while the gateway runs works soon, and a revoked one ends as soon."""
    gateway = start()
    caller = calling(gateway, operator.create("late"))
    until(lambda: caller.get("/v1/models").status == 200)
    operator.keys("revoke", json.loads(operator.keys("list", "--json"))[0]["id"])
    until(lambda: caller.get("/v1/models").status == 401)


def test_expiry(start: Any, calling: Any, operator: Any) -> None:
    """A key ends by itself at its time, and a later time brings it back."""
    key = operator.create("short")
    [made] = json.loads(operator.keys("list", "--json"))
    operator.keys("expire", made["id"], "--at", "2020-01-01")
    caller = calling(start(), key)
    assert caller.get("/v1/models").status == 401
    [listed] = json.loads(operator.keys("list", "--json"))
    assert listed["status"] == "expired"
    operator.keys("expire", listed["id"], "--at", "90d")
    until(lambda: caller.get("/v1/models").status == 200)


def test_nothing_keeps_the_secret(operator: Any, tmp_path: Path) -> None:
    """The database has a digest, the lists have an id, and neither has the key."""
    key = operator.create("mine")
    assert key not in operator.keys("list") + operator.keys("list", "--json") + operator.keys("usage")
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("access.db*"))
    assert key.encode() not in stored
    assert key.removeprefix(PREFIX).encode() not in stored
    assert (tmp_path / "access.db").stat().st_mode & 0o777 == 0o600


def test_usage_survives(start: Any, calling: Any, operator: Any) -> None:
    """Counts are the engine's own, also of a stream that asked for none, and outlive the gateway."""
    key = operator.create("counted")
    gateway = start(usage_flush_seconds=3600)  # so that only the orderly end writes
    caller = calling(gateway, key)
    caller.chat("one two")
    streamed = caller.chat("one two three", stream=True)
    assert streamed.receipt.usage == Usage(prompt_tokens=3, completion_tokens=5)
    assert b'"usage"' not in streamed.body
    gateway.restart()
    calling(gateway, key).chat("four")
    gateway.stop()
    [row] = json.loads(operator.keys("usage", "--json"))
    assert row["name"] == "counted"
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (3, 6, 15)


def _lost(database: Path) -> bool:
    """Whether something else is in its place now: the gateway looks at it all the while, and SQLite makes it anew."""
    for file in database.parent.glob("access.db*"):
        file.unlink(missing_ok=True)
    with suppress(FileExistsError):
        database.mkdir()
    return database.is_dir()


def test_a_lost_database(
    start: Any, calling: Any, operator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database is gone keys work on for a while, then nobody's does, and readiness says so."""
    key, late = operator.create(), 0.0
    monkeypatch.setattr(keyring, "time", clock := SimpleNamespace(time=time.time))
    clock.monotonic = lambda: time.monotonic() + late
    caller = calling(start(access_stale_seconds=3600), key)
    until(lambda: _lost(tmp_path / "access.db"))
    assert caller.get("/v1/models").status == 200
    late = 3601
    until(lambda: caller.get("/v1/models").status == 503)
    assert caller.get("/v1/models").error == "access_unavailable"
    assert caller.http.get("/readyz").json()["reason"] == "access_unavailable"


def test_a_database_that_is_away_at_the_start(
    start: Any, calling: Any, operator: Any, tmp_path: Path
) -> None:
    """A worker that starts while the database is away refuses everybody, and lets them in when it is back."""
    key = operator.create()
    (tmp_path / "access.db").rename(tmp_path / "elsewhere")
    (tmp_path / "access.db").mkdir()
    caller = calling(start(), key)
    assert caller.get("/v1/models").error == "access_unavailable"
    (tmp_path / "access.db").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "access.db")
    until(lambda: caller.get("/v1/models").status == 200)


def test_no_database_call_on_the_way(start: Any, calling: Any, operator: Any) -> None:
    """Requests are answered while another process holds the database."""
    key = operator.create()
    caller = calling(start(), key)
    with closing(sqlite3.connect(operator.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        for _ in range(20):
            assert caller.get("/v1/models").status == 200
        assert time.monotonic() - begun < 20 * 4  # SQLite would wait for 5 s, each time
        other.execute("ROLLBACK")


def test_reading_needs_no_write_lock(operator: Any) -> None:
    """Keys are looked at again, every few seconds in every worker, while another process is writing."""
    operator.create("known")
    store = Store(operator.database)
    with closing(sqlite3.connect(operator.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.changes() > 0
        assert [key.name for key in store.all()] == ["known"]
        assert store.use(since=0) == {}
    store.close()


def test_unknown_id_and_bad_moment(operator: Any) -> None:
    """What an operator mistypes is an error with a reason, not a silent success."""
    with pytest.raises(StoreError, match="no key key_none"):
        operator.keys("revoke", "key_none")
    with pytest.raises(StoreError, match="no key key_none"):
        operator.keys("usage", "key_none")
    with pytest.raises(ValueError, match="'soon' is no moment"):
        operator.keys("create", "x", "--expires", "soon")
    with pytest.raises(ValueError, match="over already"):
        operator.keys("create", "x", "--expires", "2001-01-31")
    with pytest.raises(ValueError, match="200 characters"):
        operator.keys("create", "x" * 201)
    with pytest.raises(ValueError, match="has a name"):
        operator.keys("create", " ")
    assert operator.keys("list") == ""
    with pytest.raises(ValueError, match="at least one"):
        operator.keys("limit", "key_none")


@pytest.mark.parametrize(
    "url",
    [
        "mysql:///x",
        "postgresql://me:hunter2@host/db",
        "postgresql://host/db?user=a&password=hunter2",
        "keys.db",
    ],
)
def test_database_setting(url: str, tmp_path: Path) -> None:
    """Other databases are refused, and so is a password in the settings, without repeating it."""
    from tests.servers import gateway_settings

    with pytest.raises(ValueError, match="access_database") as caught:
        gateway_settings(tmp_path, access_database=url)
    assert "hunter2" not in str(caught.value)
