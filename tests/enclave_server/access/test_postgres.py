"""Two gateways that share their keys in PostgreSQL. Skipped where PostgreSQL's server is not installed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enclave_server.access.store import Store, StoreError
from tests.enclave_server.access.conftest import Operator
from tests.processes import until
from tests.servers import FakeEngine, free_port, live_gateway

pytest.importorskip("psycopg", reason="needs the extra `postgres`")


def program(name: str) -> str:
    found = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if found is None:
        pytest.skip(f"PostgreSQL is not installed: no {name}")
    return found


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A server of this module's own, on loopback; its URL."""
    initdb, server = program("initdb"), program("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder, port = Path(tempfile.mkdtemp(prefix="pg")), free_port()
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    made = [
        initdb,
        "-D",
        str(data),
        "-U",
        "postgres",
        "--auth=trust",
        "--no-sync",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    subprocess.run(made, user=user, cwd=folder, check=True, capture_output=True, timeout=240)
    with (folder / "log").open("wb") as log:
        command = [server, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-F"]
        running = subprocess.Popen(command, user=user, cwd=folder, stdout=log, stderr=log)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    try:
        until(lambda: answers(url))
        yield url
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> bool:
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=60).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_fleet_shares_keys(postgres: str, tmp_path: Path, engine: FakeEngine, calling: Any) -> None:
    """A key made once works at both gateways, is revoked at both, and its use adds up."""
    operator = Operator(tmp_path)
    operator.file.write_text(operator.file.read_text().replace(operator.database, postgres))
    key = operator.create("shared", "--requests-per-minute", "100")
    [listed] = json.loads(operator.keys("list", "--json"))
    values: dict[str, Any] = {
        "access": "keys",
        "access_database": postgres,
        "access_refresh_seconds": 0.2,
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        live_gateway(tmp_path / "one", engine=engine, **values) as one,
        live_gateway(tmp_path / "two", engine=engine, **values) as two,
    ):
        callers = [calling(gateway, key) for gateway in (one, two)]
        assert [caller.chat("one two").status for caller in callers] == [200, 200]
        operator.keys("revoke", listed["id"])
        for caller in callers:
            until(lambda caller=caller: caller.get("/v1/models").status == 401)  # type: ignore[misc]
    [row] = json.loads(operator.keys("usage", listed["id"], "--json"))
    assert (row["prompt_tokens"], row["completion_tokens"]) == (4, 10)


def test_migrating_at_once(postgres: str) -> None:
    """Gateways that start together on an empty database do not get in each other's way."""
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE fresh")
    url = postgres.rpartition("/")[0] + "/fresh"
    failures: list[Exception] = []

    def migrate() -> None:
        store = Store(url)
        try:
            store.migrate()
        except StoreError as exc:
            failures.append(exc)
        finally:
            store.close()

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    store = Store(url)
    assert store.changes() == 0
    store.close()


def test_a_server_that_is_not_there() -> None:
    """An unreachable server is an error that names neither host nor user."""
    begun = time.monotonic()
    store = Store(f"postgresql://somebody@127.0.0.1:{free_port()}/db")
    with pytest.raises(StoreError) as caught:
        store.migrate()
    assert "somebody" not in str(caught.value)
    assert time.monotonic() - begun < 100
    store.close()
