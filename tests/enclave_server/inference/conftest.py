"""One gateway for all tests of a file: they leave nothing behind in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.caller import Caller
from tests.servers import FakeEngine, LiveGateway, live_gateway


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeEngine, LiveGateway, Caller]]:
    """One gateway for all tests of this file: they leave nothing behind in it."""
    folder = tmp_path_factory.mktemp("shared")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine) as gateway,
        Caller(gateway.origin, gateway.policy_text) as caller,
    ):
        yield engine, gateway, caller


@pytest.fixture
def engine(shared: tuple[FakeEngine, LiveGateway, Caller]) -> FakeEngine:
    shared[0].reset()
    return shared[0]


@pytest.fixture
def gateway(engine: FakeEngine, shared: tuple[FakeEngine, LiveGateway, Caller]) -> LiveGateway:
    return shared[1]


@pytest.fixture
def caller(engine: FakeEngine, shared: tuple[FakeEngine, LiveGateway, Caller]) -> Caller:
    return shared[2]
