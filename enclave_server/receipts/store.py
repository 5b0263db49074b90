"""Logs of receipts on disk: one folder a log, laid out as c2sp.org/tlog-tiles serves it.

    log_dir/lock                 held by the gateway that writes
    log_dir/latest               the key of the log that was begun last, in hex
    log_dir/<key>/checkpoint     the signed head; replaced when all that it covers is on disk
    log_dir/<key>/tile/…         written once, each under another name first
    log_dir/<key>/previous       the last checkpoint of the log before, to which the first entry commits
    log_dir/<key>/index.sqlite   where each entry is

A log is written by one process, and never taken up again: its key dies with it, and the next boot begins another one. So a
crash at any point leaves a checkpoint and everything that it covers; what was written after it is nobody's, and harmless.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.errors import AttestationError
from attestation.tlog import (
    Checkpoint,
    TileReader,
    Tree,
    VerifierKey,
    log_origin,
    own_key,
    predecessor_entry,
    sign_checkpoint,
    verify_checkpoint,
)
from attestation.tlog.merkle import subtree_root
from attestation.tlog.tiles import CHECKPOINT
from enclave_server import lock

PREVIOUS, LATEST, _INDEX, _LOCK = "previous", "latest", "index.sqlite", "lock"
_BUSY_SECONDS = 5.0
HOLD_SECONDS = 5.0  # for one that was killed a moment ago to be gone
_KEY = re.compile(r"[0-9a-f]{64}")


class LogError(ValueError):
    """The log's directory is not as a gateway leaves it. An operator has to look."""


class Index:
    """Where each entry is: a file beside the log, which can be lost without loss to the log."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / _INDEX

    def add(self, numbers: Sequence[int], entries: Sequence[bytes]) -> None:
        rows = zip(entries, numbers, strict=True)
        with closing(self._open()) as database, database:
            database.executemany("insert or replace into entry values (?, ?)", rows)

    def find(self, entry: bytes) -> int | None:
        if not self._file.exists():
            return None
        with closing(self._open()) as database:
            row = database.execute("select number from entry where hash = ?", (entry,)).fetchone()
        return row and int(row[0])

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._file, timeout=_BUSY_SECONDS)
        database.execute("pragma journal_mode = wal")
        database.execute("create table if not exists entry (hash blob primary key, number int) without rowid")
        return database


class DiskLog:
    """The log of one boot. Only the process that writes it calls `append`."""

    def __init__(self, folder: Path, private: Ed25519PrivateKey) -> None:
        public = private.public_key().public_bytes_raw()
        self.key = VerifierKey(name=log_origin(public), key=public)
        self.folder, self._private = folder, private
        self._index = Index(folder)
        self._tree = Tree()

    @property
    def size(self) -> int:
        return self._tree.size

    def append(self, entries: Sequence[bytes]) -> None:
        """Put entries into the log, durably: tiles, then the index, then the checkpoint that covers them. May be tried again."""
        if not entries:
            return
        tree, files = self._tree.extend(entries)
        write_files({self.folder / path: data for path, data in files.items()})
        self._index.add(range(self._tree.size, tree.size), entries)
        head = Checkpoint(origin=self.key.name, size=tree.size, root=tree.root)
        write_files({self.folder / CHECKPOINT: sign_checkpoint(head, self._private)})
        self._tree = tree
        for path in files:
            if ".p/" not in path:  # complete: what was partial of it is not needed any more
                shutil.rmtree(self.folder / f"{path}.p", ignore_errors=True)


def hold(log_dir: Path) -> int:
    """Keep every other gateway out of the directory, for as long as the descriptor is open in this process or a child of it."""
    log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        return lock.hold(log_dir / _LOCK, HOLD_SECONDS)
    except BlockingIOError:
        raise LogError(f"log_dir: another gateway writes to {log_dir}") from None


def begin_log(log_dir: Path, private: Ed25519PrivateKey) -> DiskLog:
    """A new log, whose first entry commits to the end of the one before. Refuses a directory in which that one is damaged."""
    log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    previous = last_checkpoint(log_dir)
    key = private.public_key().public_bytes_raw().hex()
    store = DiskLog(log_dir / key, private)
    write_files({store.folder / PREVIOUS: previous})
    store.append([predecessor_entry(previous)])
    write_files({log_dir / LATEST: f"{key}\n".encode()})
    return store


def last_checkpoint(log_dir: Path) -> bytes:
    """The checkpoint with which the last log here ended, empty when there was none; LogError when that cannot be told."""
    try:
        latest = (log_dir / LATEST).read_text().strip()
    except FileNotFoundError:
        for folder in log_dir.iterdir():
            begun = _KEY.fullmatch(folder.name) and (folder / CHECKPOINT).exists()
            if begun and _check(folder).size > 1:  # else a first boot ended before it had handed anything out
                raise LogError(f"log_dir: {log_dir} has logs, but no file {LATEST!r}") from None
        return b""
    if not _KEY.fullmatch(latest):
        raise LogError(f"log_dir: {log_dir / LATEST} names no log")
    _check(log_dir / latest)
    return (log_dir / latest / CHECKPOINT).read_bytes()


def read_file(folder: Path, path: str) -> bytes | None:
    """A resource of a log; None when there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return (folder / path).read_bytes()
    return None


def write_files(files: Mapping[Path, bytes]) -> None:
    """Each of them whole or not at all; durable, all of them, when this returns."""
    new = {folder.parent for path in files for folder in path.parents if not folder.exists()}
    for path, data in files.items():
        write_file(path, data)
    for folder in new | {path.parent for path in files}:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Under another name first, so that nobody ever sees half of it.

    `client_sdk.files.replace_file` is its twin: what the two packages share, `attestation`, touches no disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _check(folder: Path) -> Checkpoint:
    """The log's head: signed by its key, and the root of what is on disk."""
    try:
        key = own_key(log_origin(bytes.fromhex(folder.name)))
        data = read_file(folder, CHECKPOINT)
        if key is None or data is None:
            raise LogError(f"log_dir: {folder} has no checkpoint")
        head = verify_checkpoint(data, key)
        found = subtree_root(0, head.size, TileReader(lambda path: read_file(folder, path), head.size).nodes)
    except AttestationError as exc:
        raise LogError(f"log_dir: {folder} is damaged: {exc}") from exc
    if found != head.root:
        raise LogError(f"log_dir: {folder} is damaged: its tiles do not lead to its checkpoint")
    return head
