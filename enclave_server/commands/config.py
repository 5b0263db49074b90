"""`enclave-server config`: what is in effect here."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import typer

from enclave_server.commands.options import Config, EngineAddress, Workers, load, origins_of
from enclave_server.config_identity import MARK


def show_config(config: Config = None, workers: Workers = None, engine: EngineAddress = None) -> None:
    """Print the effective settings (TOML), where each came from, and their digest."""
    settings = load(config, workers=workers, engine=engine)
    origins = origins_of(config, workers=workers, engine=engine)
    for name, value in settings.effective().items():
        line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        typer.echo(f"{line}  # {origins[name]}")
    typer.echo(f"# digest: {settings.digest().hex()}")
    if config is not None:
        typer.echo(f"# for the kernel's command line: {MARK}{sha256(config.read_bytes()).hexdigest()}")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)
