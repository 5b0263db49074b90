"""The small parts: splicing, shared counters, migrations."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from enclave_server.access import store as store_module
from enclave_server.access.body import for_engine
from enclave_server.access.counters import SharedCounters
from enclave_server.access.store import Store, StoreError, Use
from tests.processes import forked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(
    st.dictionaries(st.text().filter(lambda name: name != "cache_salt"), JSON), st.text(" \n\t", max_size=3)
)
def test_splicing_changes_one_member(value: dict[str, object], space: str) -> None:
    """Whatever object a client sends, the engine reads the same one, and the salt."""
    body = (json.dumps(value) + space).encode()
    sent, counts = for_engine(body, value, b"/v1/embeddings", b"salt")
    assert json.loads(sent) == {**value, "cache_salt": "salt"}
    assert not counts


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"stream":true}', True),
        (b'{"stream": true , "x": 1}', True),
        (b'{"stream":false}', False),
        (b"{}", False),
        (b'{"stream":true,"stream_options":null}', False),
        (b'{"stream":true,"stream_options":{"include_usage":false}}', False),
        (b'{"x":{"stream":true}}', False),
    ],
)
def test_when_a_count_is_asked_for(body: bytes, asked: bool) -> None:
    """Only for a stream whose options the client left open."""
    sent, counts = for_engine(body, json.loads(body), b"/v1/completions", b"salt")
    assert counts is asked
    assert (b'"stream_options":{"include_usage":true}' in sent) is asked


def test_counters_are_shared_by_forked_workers() -> None:
    """What one process counts, another reads; a process that dies with the lock in its hand blocks nobody."""
    counters = SharedCounters()

    def count_and_die() -> None:
        counters.incr("k", 60, 5)
        counters._locked().__enter__()

    assert os.waitpid(forked(count_and_die), 0)[1] == 0
    assert counters.incr("k", 60) == 6
    assert counters.get("other") == 0


def test_counters_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter is zero after its end, and the end does not move while it counts."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    counters = SharedCounters()
    counters.incr("k", 60)
    now += 59
    assert counters.incr("k", 60) == 2
    assert counters.get_expiry("k") == 1060
    now += 1
    assert counters.get("k") == 0
    counters.incr("k", 60)
    counters.clear("k")
    assert counters.get("k") == 0
    counters.incr("k", 60)
    counters.reset()
    assert counters.get("k") == 0


def test_counters_with_no_place_left() -> None:
    """In a full table the counter that ends first gives way; nothing fails."""
    counters = SharedCounters(slots=4)
    for number in range(20):
        assert counters.incr(f"k{number}", 60 + number) == 1
    assert counters.get("k19") == 1


def test_migrations_make_what_the_code_expects(tmp_path: Path) -> None:
    """The migrated tables are those of `store.metadata`, and migrating again changes nothing."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from enclave_server.access.store import HEAD, metadata

    store = Store(f"sqlite:///{tmp_path}/a.db")
    store.migrate()
    store.migrate()
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        assert context.get_current_heads() == (HEAD,)
    store.close()


def test_use_adds_up(tmp_path: Path) -> None:
    """Counts of one key and day are added, also when several gateways write them."""
    store = Store(f"sqlite:///{tmp_path}/a.db")
    store.migrate()
    key, _ = store.create("k")
    for _ in range(2):
        store.add_use({(key.id, 1): Use(1, 0, 2, 3), (key.id, 2): Use(1, 1, 0, 0)})
    assert store.use(since=1) == {key.id: Use(4, 2, 4, 6)}
    assert store.use(since=2) == {key.id: Use(2, 2, 0, 0)}
    assert store.use(since=1, key_id="other") == {}
    store.close()


def test_looking_for_changes_opens_no_file_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's change is seen at once, also in another file of that name; what may have been written a moment ago is read again."""
    path = tmp_path / "a.db"
    store, other = Store(f"sqlite:///{path}"), Store(f"sqlite:///{path}")
    store.migrate()
    opened: list[object] = []
    sa.event.listen(store._engine, "connect", lambda *_: opened.append(None))

    def looks(seconds: float) -> tuple[int, int]:
        """What two looks find, and how often they open it, when files settle within so many seconds."""
        monkeypatch.setattr(store_module, "_SETTLED_SECONDS", seconds)
        opened.clear()
        found = {store.changes(), store.changes()}
        time.sleep(
            0.05
        )  # so that what is written next has another time, however coarse the clock of files is
        assert len(found) == 1
        return found.pop(), len(opened)

    at_once, never = float("-inf"), float("inf")
    assert looks(never) == (0, 2)
    assert looks(at_once) == (0, 1)
    other.create("a")
    assert looks(at_once) == (1, 1)
    key, _ = other.create("b")
    other.change(key.id, revoked_at=1)
    assert looks(at_once) == (3, 1)
    assert looks(at_once) == (3, 0)

    with sqlite3.connect(path) as kept:  # its -wal stays where it is, and changes there
        kept.execute("PRAGMA journal_mode=WAL")
        kept.execute("UPDATE api_key_changes SET count = 4")
        kept.commit()
        assert looks(at_once)[0] == 4
        kept.execute("UPDATE api_key_changes SET count = 5")
        kept.commit()
        assert looks(at_once)[0] == 5
    kept.close()
    assert looks(at_once)[0] == 5

    Store(f"sqlite:///{tmp_path}/b.db").migrate()
    (tmp_path / "b.db").replace(path)
    assert looks(at_once) == (0, 1)
    path.unlink()
    with pytest.raises(StoreError):
        store.changes()


def test_a_database_that_is_none(tmp_path: Path) -> None:
    """A file that is no database is an error of ours that quotes nothing."""
    (tmp_path / "a.db").write_text("sk-enclave-secret, not a database at all" * 50)
    store = Store(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(StoreError, match=r"cannot be used \(DatabaseError\)") as caught:
        store.migrate()
    store.close()
    assert "secret" not in repr(caught.value)
