"""What is kept of a connection that is gone: nothing."""

from __future__ import annotations

import gc
from pathlib import Path

from tests.caller import Caller
from tests.processes import until
from tests.servers import MODEL, FakeEngine, live_gateway

BODY = {"model": MODEL, "prompt": "a b c", "max_tokens": 64, "stream": True}


def _kept() -> int:
    """Connections that the gateway's process, which is this one, has in memory."""
    gc.collect()
    return sum(type(each).__qualname__.endswith("_protocol.<locals>.Protocol") for each in gc.get_objects())


def test_clients_that_vanish_are_let_go(engine: FakeEngine, tmp_path: Path) -> None:
    """Clients that go away while their streams end leave nothing behind, not even until the connection's idle time ends."""
    with (
        live_gateway(tmp_path, engine=engine) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        before = _kept()
        for _ in range(40):
            pieces = caller.stream("/v1/completions", BODY)
            assert next(pieces)
            pieces.close()
        until(lambda: _kept() <= before, 10)
