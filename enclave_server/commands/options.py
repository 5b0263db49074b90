"""The options that several commands of `enclave-server` take, and the settings that these give."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enclave_server.settings import Settings

Config = Annotated[Path | None, typer.Option("--config", help="TOML file; ENCLAVE_* variables go before it.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes that serve: the setting of this name.")
]
EngineAddress = Annotated[
    str | None, typer.Option("--engine", help="An engine that runs already: the setting of this name.")
]


def load(config: Path | bytes | None, **options: object) -> Settings:
    """The settings of a command that takes `--config` and options named as settings are; None: not given."""
    return Settings.load(config, **_given(options))


def origins_of(config: Path | bytes | None, **options: object) -> dict[str, str]:
    """Where `load` takes each of them from."""
    return Settings.origins(config) | dict.fromkeys(_given(options), "option")


def _given(options: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}
