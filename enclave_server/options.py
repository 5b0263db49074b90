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


def load(config: Path | bytes | None, workers: int | None) -> Settings:
    """The settings of a command that takes `--config` and `--workers`."""
    return Settings.load(config, **({} if workers is None else {"workers": workers}))


def origins_of(config: Path | bytes | None, workers: int | None) -> dict[str, str]:
    """Where `load` takes each of them from."""
    return Settings.origins(config) | ({} if workers is None else {"workers": "option"})
