"""What the log of receipts costs: on the way of an answer, in the writer, and to who asks for a proof. `make bench-log` prints it.

python -m benchmarks.log [receipts] [rounds]
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.tlog import LogProof, TileReader, VerifierKey, check_logged, dump_proof, receipt_entry
from attestation.tlog.merkle import inclusion_proof
from enclave_server.receipts.log import ReceiptLog
from enclave_server.receipts.store import DiskLog, begin_log, read_file

RECEIPT = "x" * 900  # as long as most


async def _nothing(_: Sequence[bytes]) -> None:
    """A log that takes everything."""


async def on_the_way(count: int) -> float:
    """CPU seconds for a receipt in the worker: its hash, the queue, and handing over; the writer beside it reads and drops."""
    log = ReceiptLog(VerifierKey(name="x", key=bytes(32)), _nothing, 0.01, ready=True)
    queue, tokens = log.queue(), [f"{RECEIPT}{i}" for i in range(count)]
    async with log.writing():
        spent = 0.0
        for start in range(0, count, 250):  # as many as come between two turns of a busy loop
            before = process_time()
            for token in tokens[start : start + 250]:
                queue.add(token)
            spent += process_time() - before
            before = process_time()
            queue.hand_over()
            spent += process_time() - before
            await asyncio.sleep(0)
        await queue.drain()
    log.close()
    return spent / count


def append(folder: Path, count: int, batch: int) -> tuple[DiskLog, float]:
    """Receipts in a second that are durably appended, in batches of this size."""
    store, entries = begin_log(folder, Ed25519PrivateKey.generate()), [os.urandom(32) for _ in range(count)]
    start = perf_counter()
    for at in range(0, count, batch):
        store.append(entries[at : at + batch])
    return store, count / (perf_counter() - start)


def append_all(folder: Path, count: int, batch: int, rounds: int) -> str:
    rate = median(append(folder / f"{batch}-{i}", count, batch)[1] for i in range(rounds))
    return f"appended durably in batches of {batch:6}: {rate:9.0f} receipts/s, {batch / rate * 1e3:7.1f} ms a batch"


def prove(store: DiskLog, token: str) -> tuple[int, float, float]:
    """Bytes of a proof, and seconds to make and to verify it."""
    store.append([receipt_entry(token)])
    size, note = store.size, read_file(store.folder, "checkpoint") or b""
    start = perf_counter()
    hashes = inclusion_proof(
        size - 1, size, TileReader(lambda path: read_file(store.folder, path), size).nodes
    )
    proof = dump_proof(LogProof(index=size - 1, hashes=tuple(hashes), checkpoint=note))
    made = perf_counter() - start
    start = perf_counter()
    check_logged(proof, token, store.key)
    return len(proof), made, perf_counter() - start


def main(arguments: Sequence[str]) -> None:
    count, rounds = (*map(int, arguments), *(50_000, 3)[len(arguments) :])
    spent = median(asyncio.run(on_the_way(count)) for _ in range(rounds))
    print(f"in a worker: {spent * 1e6:.1f} µs of CPU for a receipt")
    with TemporaryDirectory() as folder:
        for batch in (1, 100, 1000, 10_000):
            print(append_all(Path(folder), min(count, batch * 50), batch, rounds))
        store, _ = append(Path(folder) / "one", count, 10_000)
        used = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
        size, made, checked = prove(store, "a.b.c")
        print(f"on disk: {used / store.size:.0f} bytes a receipt")
        print(
            f"a proof in a log of {store.size}: {size} bytes, {made * 1e3:.2f} ms to make, "
            f"{checked * 1e3:.2f} ms to verify"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
