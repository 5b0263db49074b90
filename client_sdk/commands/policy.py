"""`attested policy …`: what a policy file accepts, in words; and whether it is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from attestation.errors import AttestationError
from client_sdk.commands.ending import leave
from client_sdk.commands.options import AsJson
from client_sdk.evidence_policy import EvidencePolicy, read_policy
from client_sdk.policy_sentences import describe_policy, table_of, tables_of
from client_sdk.policy_words import TABLES
from client_sdk.present import clean

app = typer.Typer(no_args_is_help=True, help="Read policy files.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A policy (TOML); see docs/policy.md.")]


@app.command()
def explain(file: File, as_json: AsJson = False) -> None:
    """Say in words what a policy accepts and refuses, its defaults included."""
    policy = _read(file, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"policy": True, "tables": list(tables_of(policy))}))
        return
    for line in describe_policy(policy):
        typer.echo(clean(line))


@app.command()
def check(file: File, as_json: AsJson = False) -> None:
    """Say whether the file is a policy. Judges no evidence."""
    policy = _read(file, as_json=as_json)
    named = [name for name, *_ in TABLES if table_of(policy, name) is not None]
    if as_json:
        typer.echo(json.dumps({"policy": True, "tables": named}))
        return
    typer.echo(f"{file}: a policy, with {', '.join(named)}")


def _read(file: Path, *, as_json: bool) -> EvidencePolicy:
    try:
        return read_policy(file)
    except AttestationError as exc:
        leave(exc, as_json=as_json, also={"policy": False})
