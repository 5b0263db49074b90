"""`enclave-server engine …`: what an operator who runs the engine elsewhere needs."""

from __future__ import annotations

import typer

from enclave_server.commands.options import Config, EngineAddress, load
from enclave_server.commands.usage import group
from enclave_server.engine.topology import commands

cli = group("The engine.")


@cli.callback()
def engine() -> None:
    """The engine."""


@cli.command(name="command")
def show_command(config: Config = None, engine: EngineAddress = None) -> None:
    """Print the commands that start the engine of this configuration; see docs/engine.md."""
    for line in commands(load(config, engine=engine)):
        typer.echo(line)
