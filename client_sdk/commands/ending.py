"""How a command of `attested` ends when something failed: one JSON object, or words on standard error; and its exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import typer

from attestation.errors import AttestationError
from client_sdk.exits import ExitCode, exit_code
from client_sdk.present import clean, failure, reasons


def leave(
    error: AttestationError, *, as_json: bool, head: str = "", also: Mapping[str, object] | None = None
) -> NoReturn:
    """What failed, and what to do; nothing else is printed. `also` are members of a command's own."""
    if as_json:
        typer.echo(json.dumps({**failure(error), **(also or {})}))
    else:
        typer.echo(clean("\n".join([*([head] if head else []), *reasons(error)])), err=True)
    raise typer.Exit(exit_code(error)) from error


def not_written(file: Path, exc: OSError, *, as_json: bool) -> NoReturn:
    """An outcome that could not be kept leaves the question open."""
    words = f"cannot write {file}: {exc.strerror or exc}"
    if as_json:
        typer.echo(json.dumps({**failure(None), "verdict": "undecided", "detail": words}))
    else:
        typer.echo(clean(words), err=True)
    raise typer.Exit(ExitCode.UNDECIDED) from exc
