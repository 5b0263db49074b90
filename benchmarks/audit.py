"""How many receipts of one enclave `attested audit` verifies in a second. `make bench-audit` prints the table.

The same exchanges are audited as one file and as a folder of files (each with the evidence in it), by one process and by
two, in turns; what counts is the median of the rounds. Reading, parsing, the evidence and starting processes are included.

    python -m benchmarks.audit [receipts] [rounds]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
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


def rate(path: Path, count: int, jobs: int) -> float:
    start = perf_counter()
    tally = audit_path(path, Terms(POLICY), jobs)
    seconds = perf_counter() - start
    if tally.held != count:
        sys.exit(f"not all held: {tally.refused[:1]}")
    return count / seconds


def main(arguments: Sequence[str]) -> None:
    count, rounds = (*map(int, arguments), *(10_000, 3)[len(arguments) :])
    bundle = make(count)
    with TemporaryDirectory() as folder:
        one, many = Path(folder) / "one.json", Path(folder) / "many"
        one.write_bytes(dump_bundle(bundle))
        many.mkdir()
        for i, exchange in enumerate(bundle.exchanges):
            (many / f"{i:06}.json").write_bytes(dump_bundle(replace(bundle, exchanges=(exchange,))))
        cases = {(path, jobs): list[float]() for path in (one, many) for jobs in (1, 2)}
        for _ in range(rounds):
            for (path, jobs), rates in cases.items():
                rates.append(rate(path, count, jobs))
    print(f"{count} receipts of one enclave, receipts/s (median of {rounds}):")
    for (path, jobs), rates in cases.items():
        what = "one file" if path == one else "a folder of files"
        print(f"  {what:18} {jobs} process{'es' if jobs > 1 else '  '} {median(rates):8.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
