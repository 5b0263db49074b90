"""More contenders of our own, for plain answers: the gateway when requests are sealed, and the least that Python can do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from attestation import sealed
from benchmarks.contenders import CONTENDER_CPU, Contender, Engine, free_port, ours, process
from benchmarks.floor import API_KEY
from benchmarks.sealing import Client


@contextmanager
def sealed_ours(engine: Engine, folder: Path) -> Iterator[Contender]:
    """Every request sealed with X-Wing, and every answer. One request is sent many times, and opened each time."""
    with ours(engine, folder, other="without-memory") as contender:
        client = Client(contender)
        client.sealed(b'{"model":"mock","messages":[]}', 1, sealed.X_WING)  # fails when it is refused
        yield _sealing(contender, "ours sealed", lambda body: client.seal(body)[0])


@contextmanager
def ticket_ours(engine: Engine, folder: Path) -> Iterator[Contender]:
    """The same with a ticket, and every answer brings another."""
    folder = folder / "tickets"
    folder.mkdir()
    with ours(engine, folder, other="without-memory") as contender:
        client = Client(contender)
        yield _sealing(
            contender, "ours sealed, tickets", lambda body: client.seal(body, ticket=client.ticket())[0]
        )


def _sealing(contender: Contender, name: str, seal: Callable[[bytes], bytes]) -> Contender:
    kind = (f"Content-Type: {sealed.REQUEST_TYPE}",)
    return replace(contender, name=name, headers=kind, path=sealed.PATH, seal=seal, streams=False)


@contextmanager
def floor(engine: Engine, _: Path) -> Iterator[Contender]:
    """`floor.py`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.floor", str(port), str(engine.socket)]
    with process("floor", command, port, CONTENDER_CPU) as pid:
        headers = (f"Authorization: Bearer {API_KEY}",)
        yield Contender("floor", f"127.0.0.1:{port}", pid, headers, streams=False)
