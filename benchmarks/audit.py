"""How many receipts of one enclave `attested audit` verifies in a second. `make bench-audit` prints the table.

The same exchanges are audited as one file and as a folder of files (each with the evidence in it), by one process and by
two, in turns; what counts is the median of the rounds. Reading, parsing, the evidence and starting processes are included.
The second number is per second of CPU time, of all processes: what to look at on a machine that does other work as well.

    python -m benchmarks.audit [receipts] [rounds]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from attestation.bundle import Bundle, SavedExchange, dump_bundle
from client_sdk.audit_work import Terms, audit_path
from tests.client_sdk.pretend import ANSWER, NOW, POLICY, PretendEnclave


def make(count: int) -> Bundle:
    """Exchanges with one enclave, a few each second."""
    enclave = PretendEnclave()
    exchange, start = enclave.exchange(), int(NOW.timestamp())
    exchanges = tuple(
        SavedExchange(
            receipt=enclave.receipt(exchange, ANSWER, id=f"r-{i}", time=start + i // 4),
            nonce=exchange.nonce,
            request=exchange.body,
            response=ANSWER,
        )
        for i in range(count)
    )
    return Bundle(evidence=enclave.document(b"\x09" * 32), nonce=b"\x09" * 32, exchanges=exchanges)


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = (getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def rates(path: Path, count: int, jobs: int) -> tuple[float, float]:
    """Receipts in a second, and in a second of CPU time."""
    start, cpu = perf_counter(), cpu_seconds()
    tally = audit_path(path, Terms(POLICY), jobs)
    seconds, cpu = perf_counter() - start, cpu_seconds() - cpu
    if tally.held != count:
        sys.exit(f"not all held: {tally.refused[:1]}")
    return count / seconds, count / cpu


def main(arguments: Sequence[str]) -> None:
    count, rounds = (*map(int, arguments), *(10_000, 3)[len(arguments) :])
    bundle = make(count)
    with TemporaryDirectory() as folder:
        one, many = Path(folder) / "one.json", Path(folder) / "many"
        one.write_bytes(dump_bundle(bundle))
        many.mkdir()
        for i, exchange in enumerate(bundle.exchanges):
            (many / f"{i:06}.json").write_bytes(dump_bundle(replace(bundle, exchanges=(exchange,))))
        cases = {(path, jobs): list[tuple[float, float]]() for path in (one, many) for jobs in (1, 2)}
        for _ in range(rounds):
            for (path, jobs), found in cases.items():
                found.append(rates(path, count, jobs))
    print(f"{count} receipts of one enclave (median of {rounds}), in a second, and in a second of CPU time:")
    for (path, jobs), found in cases.items():
        what = "one file" if path == one else "a folder of files"
        wall, cpu = (median(column) for column in zip(*found, strict=True))
        print(f"  {what:18} {jobs} process{'es' if jobs > 1 else '  '} {wall:8.0f} {cpu:8.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
