"""A user's program that forks while an attestation runs: `python -m tests.client_sdk.forking ORIGIN POLICY`.

It says when it has a verdict, waits for a line, and prints the counters of the receipts that it and its child then had.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from client_sdk import Trust, attested_transport

AGE = timedelta(seconds=200)  # of receipts, whose clocks may be 300 s off


def main(origin: str, policy: str) -> None:
    ahead = timedelta()
    trust = Trust(Path(policy), clock=lambda: datetime.now(UTC) + ahead, max_age=AGE)
    client = httpx.Client(transport=attested_transport(trust), timeout=60)

    def ask() -> int:
        counter: int = client.get(f"{origin}/v1/models").extensions["attestation"].receipt.counter
        return counter

    counters = [ask()]
    print("verified", flush=True)  # noqa: T201
    sys.stdin.readline()  # evidence takes its time from here on
    ahead = AGE * 0.81
    counters.append(ask())
    names = {thread.name for thread in threading.enumerate()}
    assert "attestation-renewal" in names, "it holds the lock, and is not in the child"
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(writer, str(ask()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        counters.append(int(answer.read()))
    os.waitpid(pid, 0)
    counters.append(ask())
    print(json.dumps(counters), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
