"""What all commands of `attested` have in common: how their help ends, and the exit codes of wrong usage and lost words."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from client_sdk.commands.examples import epilog
from client_sdk.exits import ExitCode

_UsageError: Any = typer.BadParameter.__base__  # typer exports no name for it


class Commands(TyperGroup):
    """The root of the command line: a usage error anywhere below it leaves with `ExitCode.USAGE`.

    Where its words cannot be written, nobody was told an outcome: `ExitCode.UNDECIDED`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _no_types_after_switches(self)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return _with_own_codes(super().make_context, *args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        return _with_own_codes(super().invoke, *args, **kwargs)


class Later(TyperCommand):
    """A command of which only a name and a line are known until somebody runs it, asks for its help or completes its words.

    Then the function or group at `home` takes over, and its help ends with examples and exit codes.
    """

    def __init__(self, name: str, home: str, line: str, panel: str) -> None:
        super().__init__(name, help=line, rich_help_panel=panel)
        self._home = home

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self._home.partition(":")
        found = getattr(import_module(f"client_sdk.commands.{module}"), attribute)
        name = self.name or ""
        if isinstance(found, typer.Typer):
            command: Any = get_group(found)
            for inner, below in command.commands.items():
                _complete(f"{name} {inner}", below)
        else:
            one = typer.Typer(add_completion=False)
            one.command(name)(found)
            command = get_command(one)
        _complete(name, command)
        return command

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return self.load().make_context(*args, **kwargs)


def _complete(name: str, command: Any) -> None:
    """Help that fills its lines, with examples at its end, and arguments in capitals."""
    _no_types_after_switches(command)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.metavar = parameter.metavar or parameter.name.upper()
            # typer puts what is required into braces, which no manual does
            parameter._usage_display_name = partial(str, name if parameter.required else f"[{name}]")  # noqa: SLF001
    command.help = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    command.epilog = epilog(name)


def _no_types_after_switches(command: Any) -> None:
    for parameter in (*command.params, command.get_help_option(typer.Context(command))):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""


def _with_own_codes(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except _UsageError as exc:
        exc.exit_code = int(ExitCode.USAGE)
        raise
    except OSError as exc:
        _left_unsaid(exc)


def _left_unsaid(exc: OSError) -> NoReturn:
    """Leave when the disk behind standard output is full, or nobody reads it any more. The latter needs no words."""
    with suppress(OSError):
        if not isinstance(exc, BrokenPipeError):
            typer.echo(f"cannot write {exc.filename or 'what was found'}: {exc.strerror or exc}", err=True)
    with suppress(OSError, ValueError):  # what is left of it would be written, and fail, once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise typer.Exit(ExitCode.UNDECIDED) from exc
