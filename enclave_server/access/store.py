"""The keys and their use in a database: SQLite in a file, or PostgreSQL for gateways that share keys.

Everything here blocks; the gateway calls it from a thread, never for a request. Secrets are never stored.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from enclave_server.access.keys import Key, digest_of, new_secret
from enclave_server.mendable import MendableError

HEAD = "0001"  # the newest in `migrations`
NAME_LENGTH = 200
_MIGRATION_LOCK = 0x656E636C617665  # of PostgreSQL's advisory locks: one gateway at a time migrates
_READS = "reads"  # of an engine's options
_SETTLED_SECONDS = 2.0  # longer than any clock of files is coarse: a later write has another time

metadata = sa.MetaData()
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("name", sa.String(NAME_LENGTH), nullable=False),
    sa.Column("tenant", sa.String(NAME_LENGTH), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("concurrency", sa.BigInteger),
)
api_key_usage = sa.Table(
    "api_key_usage",
    metadata,
    sa.Column("key_id", sa.String(32), sa.ForeignKey("api_keys.id"), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)
# One row that goes up with every change of a key, so that looking for changes costs one small read.
api_key_changes = sa.Table(
    "api_key_changes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("count", sa.BigInteger, nullable=False),
)


_Stamp = tuple[tuple[str, int, int, int, int], ...]  # of each file: name, device, inode, bytes, ctime


class StoreError(MendableError):
    """The database cannot be used, or knows no such key. Never quotes the database's own words or its URL."""


@dataclass(slots=True)
class Use:
    """What a key did on a day; tokens as the engine counted them."""

    requests: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, more: Use) -> None:
        self.requests += more.requests
        self.refused += more.refused
        self.prompt_tokens += more.prompt_tokens
        self.completion_tokens += more.completion_tokens


class Store:
    """One database. Opens its first connection when it is first asked; `close` before a fork."""

    def __init__(self, url: str) -> None:
        self._url = sa.make_url(url)
        if self._url.drivername == "postgresql":
            self._url = self._url.set(drivername="postgresql+psycopg")
        self._file = Path(self._url.database) if self._is_sqlite and self._url.database else None
        try:
            if self._is_sqlite:  # no pool: an open file would hide that another was put in its place
                self._engine = sa.create_engine(self._url, poolclass=sa.NullPool)
            else:
                self._engine = sa.create_engine(self._url, pool_size=1, max_overflow=1, pool_pre_ping=True)
        except ModuleNotFoundError:
            raise StoreError("access_database: PostgreSQL needs the extra `postgres`") from None
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._reader = self._engine.execution_options(**{_READS: True})
        self._looked: tuple[_Stamp, int] | None = None  # the files, and what `changes` found in them

    @property
    def _is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    def close(self) -> None:
        self._engine.dispose()

    def migrate(self) -> None:
        """Bring the tables to this version's form; several gateways may do so at once."""
        if self._file is not None:  # readable by nobody else
            with _named_errors():
                os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        with self._transaction() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            if _version(connection) != HEAD:
                _upgrade(connection)

    def changes(self) -> int:
        """A number that differs from an earlier one when any key was changed since. Files that nobody has written are not opened."""
        stamp = self._stamp()
        if stamp is not None and self._looked is not None and self._looked[0] == stamp:
            return self._looked[1]
        with self._reading() as connection:
            count = int(connection.execute(sa.select(api_key_changes.c.count)).scalar_one())
        self._looked = None if stamp is None else (stamp, count)
        return count

    def _stamp(self) -> _Stamp | None:
        """Which files these are, and when each was last written (ctime, which nobody can set back); None when that says nothing."""
        if self._file is None:
            return None
        found = []
        for path in (self._file, self._file.with_name(f"{self._file.name}-wal")):
            try:
                at = path.stat()
            except FileNotFoundError:
                continue  # of both, to open it will tell
            except OSError:
                return None
            found.append((path.name, at.st_dev, at.st_ino, at.st_size, at.st_ctime_ns))
        newest = max((each[-1] for each in found), default=0) / 1e9
        return tuple(found) if found and time.time() - newest > _SETTLED_SECONDS else None

    def all(self) -> list[Key]:
        with self._reading() as connection:
            rows = connection.execute(sa.select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
            return [Key(**row) for row in rows.mappings()]

    def create(self, name: str, *, pepper: bytes | None = None, **values: Any) -> tuple[Key, str]:
        """A new key and its secret, which nobody can learn again."""
        secret, key_id = new_secret(), f"key_{secrets.token_hex(8)}"
        key = Key(
            id=key_id,
            digest=digest_of(secret.encode(), pepper),
            name=name,
            created_at=int(time.time()),
            **{**values, "tenant": values.get("tenant") or key_id},
        )
        row = {column.name: getattr(key, column.name) for column in api_keys.columns}
        with self._changing() as connection:
            connection.execute(sa.insert(api_keys).values(row))
        return key, secret

    def change(self, key_id: str, **values: Any) -> None:
        """Set columns of a key."""
        with self._changing() as connection:
            done = connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(values))
            if done.rowcount != 1:
                raise StoreError(f"there is no key {key_id}")

    def add_use(self, uses: Mapping[tuple[str, int], Use]) -> None:
        """Add counts, by key and day (since 1970, UTC)."""
        insert = sqlite.insert if self._is_sqlite else postgresql.insert
        counts = ("requests", "refused", "prompt_tokens", "completion_tokens")
        with self._transaction() as connection:
            for (key_id, day), use in uses.items():
                statement = insert(api_key_usage).values(
                    key_id=key_id, day=day, **{name: getattr(use, name) for name in counts}
                )
                more = {name: api_key_usage.c[name] + statement.excluded[name] for name in counts}
                connection.execute(
                    statement.on_conflict_do_update(index_elements=["key_id", "day"], set_=more)
                )

    def use(self, *, since: int, key_id: str | None = None) -> dict[str, Use]:
        """Counts by key from a day on."""
        table = api_key_usage.c
        columns = [sa.func.sum(table[name]) for name in Use.__slots__]
        query = sa.select(table.key_id, *columns).where(table.day >= since).group_by(table.key_id)
        if key_id is not None:
            query = query.where(table.key_id == key_id)
        with self._reading() as connection:
            return {row[0]: Use(*map(int, row[1:])) for row in connection.execute(query)}

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        with self._transaction() as connection:
            yield connection
            connection.execute(sa.update(api_key_changes).values(count=api_key_changes.c.count + 1))

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _named_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with _named_errors(), self._engine.begin() as connection:
            yield connection


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command  # noqa: PLC0415 - slow to load, and needed once in a database's life
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except (sa.exc.SQLAlchemyError, OSError) as exc:
        cause = getattr(exc, "orig", None) or exc
        raise StoreError(f"access_database cannot be used ({type(cause).__name__})") from None


def _begin_sqlite(connection: sa.Connection) -> None:
    """Whoever writes has the file from the beginning; whoever reads neither waits for that nor is waited for."""
    reads = connection.get_execution_options().get(_READS)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, see the listener
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=5000")
    connection.execute("PRAGMA foreign_keys=ON")
