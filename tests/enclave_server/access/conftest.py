"""A gateway that asks for keys, and an operator who gives them out with the real command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from enclave_server.__main__ import cli
from tests.caller import Caller
from tests.servers import FakeEngine, LiveGateway, live_gateway


class Operator:
    """Types `enclave-server keys …` for one database."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "access.db"
        self.database = f"sqlite:///{self.path}"
        self.file = folder / "access.toml"
        self.file.write_text(
            f'model_dir = "/m"\nmodel_name = "m"\nmodel_digest = "{"00" * 32}"\ntee = "simulated-tdx"\n'
            f'engine_python = "/p"\naccess_database = "{self.database}"\n'
        )

    def keys(self, *arguments: str) -> str:
        done = CliRunner().invoke(cli, ["keys", *arguments, "--config", str(self.file)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    def create(self, name: str = "test", *options: str) -> str:
        """A key's secret."""
        return self.keys("create", name, *options).strip()


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


Start = Callable[..., LiveGateway]


@pytest.fixture
def start(tmp_path: Path, engine: FakeEngine, operator: Operator) -> Iterator[Start]:
    """Start the gateway with keys, and what else a test chooses."""
    with ExitStack() as stack:

        def started(**changes: Any) -> LiveGateway:
            values = {
                "access": "keys",
                "access_database": operator.database,
                "access_refresh_seconds": 0.1,
                "usage_flush_seconds": 0.1,
                **changes,
            }
            return stack.enter_context(live_gateway(tmp_path, engine=engine, **values))

        yield started


@pytest.fixture
def calling() -> Iterator[Callable[[LiveGateway, str | None], Caller]]:
    """A verifying client that shows a key."""
    with ExitStack() as stack:

        def caller(gateway: LiveGateway, key: str | None) -> Caller:
            made = stack.enter_context(Caller(gateway.origin, gateway.policy_text))
            if key is not None:
                made.http.headers["authorization"] = f"Bearer {key}"
            return made

        yield caller
