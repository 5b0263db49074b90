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
        typer.echo("\n".join(map(clean, [*([head] if head else []), *reasons(error)])), err=True)
    raise typer.Exit(exit_code(error)) from error


def unsettled(words: str, *, as_json: bool, also: Mapping[str, object] | None = None) -> NoReturn:
    """Something that is no check's matter stood in the way: the question stays open."""
    if as_json:
        told = {**failure(None), "verdict": "undecided", "detail": words, **(also or {})}
        typer.echo(json.dumps(told))
    else:
        typer.echo(clean(words), err=True)
    raise typer.Exit(ExitCode.UNDECIDED)


def not_written(file: Path, exc: OSError, *, as_json: bool) -> NoReturn:
    """An outcome that could not be kept."""
    unsettled(f"cannot write {file}: {exc.strerror or exc}", as_json=as_json)
