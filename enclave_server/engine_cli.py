"""`enclave-server engine …`: what an operator who runs the engine elsewhere needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enclave_server.engine_topology import commands
from enclave_server.settings import Settings

cli = typer.Typer(no_args_is_help=True, help="The engine.")


@cli.callback()
def engine() -> None:
    """The engine."""


@cli.command(name="command")
def show_command(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file; ENCLAVE_* variables go before it.")
    ] = None,
) -> None:
    """Print the commands that start the engine of this configuration; see docs/engine.md."""
    for line in commands(Settings.load(config)):
        typer.echo(line)
