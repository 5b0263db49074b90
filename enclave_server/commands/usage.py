"""What all commands of `enclave-server` have in common: how groups of them are made, and how help names what has to be given."""

from __future__ import annotations

from functools import partial
from typing import Any

import typer
from typer.main import get_command


def group(words: str) -> typer.Typer:
    """A command that has others below it; no shell could complete a part of a command."""
    return typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=words)


def in_capitals(app: typer.Typer) -> Any:
    """The command or group with its arguments as manuals write them; typer puts what is required into braces."""
    command: Any = get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        for parameter in each.params:
            if parameter.param_type_name == "argument":
                name = parameter.metavar = parameter.metavar or parameter.name.upper()
                parameter._usage_display_name = partial(  # noqa: SLF001
                    str, name if parameter.required else f"[{name}]"
                )
    return command
