"""How the command line ends: one exit code for each branch of the error tree, and one of its own for wrong usage."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import typer
from typer.core import TyperGroup

from attestation.errors import AttestationError, MalformedError, PolicyError, VerificationError
from client_sdk.examples import epilog

_UsageError: Any = typer.BadParameter.__base__  # typer exports no name for it


class ExitCode(IntEnum):
    """What a script may rely on."""

    ACCEPT = 0
    MALFORMED = 2
    NOT_AUTHENTIC = 3
    POLICY = 4
    UNDECIDED = 5
    USAGE = 64  # EX_USAGE: 2, which command lines use by custom, is taken


def exit_code(error: AttestationError | None) -> ExitCode:
    """The code for an outcome; None is acceptance."""
    match error:
        case None:
            return ExitCode.ACCEPT
        case MalformedError():
            return ExitCode.MALFORMED
        case VerificationError():
            return ExitCode.NOT_AUTHENTIC
        case PolicyError():
            return ExitCode.POLICY
    return ExitCode.UNDECIDED


class Commands(TyperGroup):
    """The root of the command line: every command's help ends with examples and exit codes, and a usage error
    anywhere below it leaves with `ExitCode.USAGE`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, command in self.commands.items():
            _complete(name, command)
            for inner, below in getattr(command, "commands", {}).items():
                _complete(f"{name} {inner}", below)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        return _with_usage_code(super().make_context, *args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        return _with_usage_code(super().invoke, *args, **kwargs)


def _complete(name: str, command: Any) -> None:
    """Help that fills its lines, with examples at its end."""
    command.help = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    command.epilog = epilog(name)


def _with_usage_code(call: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except _UsageError as exc:
        exc.exit_code = int(ExitCode.USAGE)
        raise
