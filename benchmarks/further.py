"""Two more contenders of our own, for plain answers: the gateway when requests are sealed, and the least that Python can do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from attestation import sealed
from attestation.sealed_head import RequestHead
from benchmarks.contenders import CONTENDER_CPU, Contender, Engine, free_port, ours, process
from benchmarks.floor import API_KEY
from benchmarks.sealing import Client


@contextmanager
def sealed_ours(engine: Engine, folder: Path) -> Iterator[Contender]:
    """Every request sealed with X-Wing, and every answer. One request is sent many times, and opened each time."""
    with ours(engine, folder, other="without-memory") as contender:
        client = Client(contender)
        head = RequestHead(
            method="POST",
            target=contender.path,
            headers=(("authorization", client.key), ("content-type", "application/json")),
        )

        def seal(body: bytes) -> bytes:
            keys, now = client.statement.keys, datetime.now(UTC)
            return sealed.seal_request(head, body, keys=keys, statement=client.digest, now=now)[0]

        client.sealed(b'{"model":"mock","messages":[]}', 1, sealed.X_WING)  # fails when it is refused
        kind = (f"Content-Type: {sealed.REQUEST_TYPE}",)
        yield replace(contender, name="ours sealed", headers=kind, path=sealed.PATH, seal=seal, streams=False)


@contextmanager
def floor(engine: Engine, _: Path) -> Iterator[Contender]:
    """`floor.py`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor", str(port), str(engine.socket)]
    with process("floor", command, port, CONTENDER_CPU) as pid:
        headers = (f"Authorization: Bearer {API_KEY}",)
        yield Contender("floor", f"127.0.0.1:{port}", pid, headers, streams=False)
