"""A log of receipts on disk: batches of any size, damage, a full disk, and an end in the middle of a batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.tlog import (
    Checkpoint,
    TileReader,
    own_key,
    predecessor_entry,
    receipt_entry,
    verify_checkpoint,
)
from attestation.tlog.merkle import consistency_proof, subtree_root, verify_consistency
from enclave_server.receipts import store as log_store
from enclave_server.receipts.store import DiskLog, LogError, begin_log, hold, last_checkpoint, read_file

ENTRIES = [receipt_entry(str(i)) for i in range(2000)]


def begin(folder: Path) -> DiskLog:
    return begin_log(folder, Ed25519PrivateKey.generate())


def head(store: DiskLog) -> Checkpoint:
    """The signed head, with all that it covers read again from disk."""
    data = read_file(store.folder, "checkpoint")
    assert data is not None
    checkpoint = verify_checkpoint(data, store.key)
    read = TileReader(lambda path: read_file(store.folder, path), checkpoint.size)
    assert subtree_root(0, checkpoint.size, read.nodes) == checkpoint.root
    return checkpoint


def test_a_log_grows_in_batches_of_any_size(tmp_path: Path) -> None:
    """After each batch the head covers all entries, in order; what is complete replaces what was partial."""
    store, known = begin(tmp_path), [predecessor_entry(b"")]
    before = head(store)
    for size in (1, 254, 1, 3, 700, 0, 65):
        batch = ENTRIES[len(known) : len(known) + size]
        store.append(batch)
        known += batch
        now = head(store)
        read = TileReader(lambda path: read_file(store.folder, path), now.size)
        assert [read.entry(i) for i in range(now.size)] == known
        proof = consistency_proof(before.size, now.size, read.nodes)
        verify_consistency(before.size, before.root, now.size, now.root, proof)
        before = now
    assert (store.folder / "tile/0/000").stat().st_size == 8192
    assert not (store.folder / "tile/0/000.p").exists()


def test_the_next_boot_commits_to_the_end_of_this_one(tmp_path: Path) -> None:
    """A new log for a new key, whose first entry is the digest of the last checkpoint."""
    first = begin(tmp_path)
    first.append(ENTRIES[:10])
    ended = read_file(first.folder, "checkpoint")
    assert ended == last_checkpoint(tmp_path)
    second = begin(tmp_path)
    assert read_file(second.folder, "previous") == ended
    assert TileReader(lambda path: read_file(second.folder, path), 1).entry(0) == predecessor_entry(ended)
    assert read_file(first.folder, "checkpoint") == ended


def _flip(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _flip(f / "checkpoint"), "damaged"),
        (lambda f: (f / "checkpoint").unlink(), "no checkpoint"),
        (lambda f: _flip(next((f / "tile/0/001.p").iterdir())), "do not lead"),
        (lambda f: next((f / "tile/0/001.p").iterdir()).unlink(), "damaged"),
        (lambda f: (f.parent / "latest").write_text("../x"), "names no log"),
        (lambda f: (f.parent / "latest").unlink(), "no file 'latest'"),
    ],
)
def test_a_damaged_log_is_refused_by_name(tmp_path: Path, damage: Any, words: str) -> None:
    """No new log is begun after one of which the end cannot be told."""
    store = begin(tmp_path)
    store.append(ENTRIES[:400])
    damage(store.folder)
    with pytest.raises(LogError, match=words):
        begin(tmp_path)


def test_one_gateway_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gateways cannot write into one directory."""
    monkeypatch.setattr(log_store, "HOLD_SECONDS", 0.1)
    descriptor = hold(tmp_path)
    with pytest.raises(LogError, match="another gateway"):
        hold(tmp_path)
    os.close(descriptor)
    os.close(hold(tmp_path))


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever write fails, the head stays what it was, and the same batch goes in later."""
    store = begin(tmp_path)
    store.append(ENTRIES[:300])
    before, write = head(store), log_store.write_file
    for allowed in range(5):
        count = iter(range(allowed))

        def failing(path: Path, data: bytes, count: Iterator[int] = count) -> None:
            if next(count, None) is None:
                raise OSError(28, "No space left on device")
            write(path, data)

        monkeypatch.setattr(log_store, "write_file", failing)
        with pytest.raises(OSError, match="No space"):
            store.append(ENTRIES[300:600])
        assert head(store) == before
    monkeypatch.undo()
    store.append(ENTRIES[300:700])
    assert head(store).size == 701


_WRITER = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from attestation.tlog import receipt_entry
from enclave_server.receipts.store import begin_log
store, number = begin_log(Path(sys.argv[1]), Ed25519PrivateKey.generate()), 0
while True:
    batch = [receipt_entry(str(number + i)) for i in range(300)]
    store.append(batch)
    number += len(batch)
    print(number, flush=True)
"""


@pytest.mark.parametrize("pause", [0.0, 0.011])
def test_killed_in_the_middle_of_a_batch(tmp_path: Path, pause: float) -> None:
    """After kill -9 of the writer everything that it had said is in the log, and another one follows it."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, tmp_path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        said = [int(writer.stdout.readline()) for _ in range(3)][-1]
        time.sleep(pause)
        writer.kill()
    ended = last_checkpoint(tmp_path)
    key = own_key(ended.decode().split("\n")[0])
    assert key is not None
    size = verify_checkpoint(ended, key).size
    assert size >= said + 1
    folder = tmp_path / key.key.hex()
    read = TileReader(lambda path: read_file(folder, path), size)
    assert [read.entry(i) for i in range(1, size)] == [receipt_entry(str(i)) for i in range(size - 1)]
    assert read_file(begin(tmp_path).folder, "previous") == ended
