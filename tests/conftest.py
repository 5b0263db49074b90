"""Fixtures that every part's tests may use."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import httpx
import httpx2
import hypothesis
import pytest
import typer.testing
from typer.main import get_command

from tests import kept_keys
from tests.served import VLLM_SECONDS, Served, served, vllm_settings
from tests.servers import FakeEngine, LiveGateway, live_gateway

# A slow machine makes no property false. The same code gives the same result twice, from so few examples that nobody waits for
# them: `make test-properties` looks for more.
_PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("tests", _PATIENT, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("search", _PATIENT, max_examples=2000)
hypothesis.settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Make once what takes long and is the same each time: RSA keys, and the commands out of a Typer app. Wait for slow machines."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for http in (httpx, httpx2):  # which else give an answer, and a connection that nobody uses, 5 s
        for wait in ("connect", "read", "write", "pool"):
            patch.setattr(http._config.DEFAULT_TIMEOUT_CONFIG, wait, 60.0)
        patch.setattr(http._config.DEFAULT_LIMITS, "keepalive_expiry", 60.0)
    kept_keys.use(config.cache.mkdir("simulated-keys"), patch)
    patch.setattr(typer.testing, "_get_command", cache(get_command))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collecting makes a million objects, none of which is ever garbage, so nobody looks for any among them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    """A fake engine of this test's own."""
    with FakeEngine(tmp_path / "engine.sock") as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine) -> Iterator[LiveGateway]:
    """The real gateway in front of `engine`, with a simulated TDX machine."""
    with live_gateway(tmp_path, engine=engine) as running:
        yield running


@pytest.fixture(scope="session")
def vllm_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The installed command in front of real vLLM with a tiny random model. One start for the whole run: do not kill it."""
    folder = tmp_path_factory.mktemp("vllm")
    with served(folder, seconds=VLLM_SECONDS, **vllm_settings()) as gateway:
        yield gateway
