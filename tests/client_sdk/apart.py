"""A stream whose events come one by one, however slow the machine is: no time keeps them apart, but what was done with each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from enclave_server.exchange import Exchange
from tests.fake_engine import Behaviour, FakeEngine


class _Apart(Behaviour):
    """The engine makes an event when the gateway has sent the one before, or after 10 s: somebody may have gone away."""

    def __init__(self, asked: Callable[[], int], **how: Any) -> None:
        self.sent, self._asked, self._made, self._since = 0, asked, (-1, 0), 0.0
        super().__init__(**how)

    @property
    def delay(self) -> float:
        """A moment more, each time that `pause` asks."""
        now, state = time.monotonic(), (self._asked(), self.sent)
        if state != self._made or now > self._since + 10:
            self._made, self._since = state, now
            return 0.0
        return now - self._since + 0.002

    @delay.setter
    def delay(self, _: float) -> None:
        pass


@contextmanager
def one_by_one(engine: FakeEngine, **how: Any) -> Iterator[None]:
    """Until the end of the block, or until the engine is given another behaviour."""
    behaviour = engine.behaviour = _Apart(lambda: len(engine.requests), **how)
    sent = Exchange._sent

    def counted(exchange: Exchange, data: bytes) -> None:
        sent(exchange, data)
        behaviour.sent += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "_sent", counted)
        yield
