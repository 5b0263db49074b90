"""`attested policy …`: what a policy file accepts, in words; and whether it is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation.errors import AttestationError
from attestation.policy import Policy
from attestation.roots import Root, is_vendor
from client_sdk.evidence_policy import EvidencePolicy, read_policy
from client_sdk.exits import exit_code
from client_sdk.options import AsJson
from client_sdk.policy_toml import default_of
from client_sdk.policy_words import ABSENT, TABLES, Words
from client_sdk.present import clean

app = typer.Typer(no_args_is_help=True, help="Read policy files.")

_LONG = 200


File = Annotated[Path, typer.Argument(metavar="FILE", help="A policy (TOML); see docs/policy.md.")]


@app.command()
def explain(file: File, as_json: AsJson = False) -> None:
    """Say in words what a policy accepts and refuses, its defaults included."""
    policy = _read(file, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"policy": True, "tables": list(_tables(policy))}))
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


def describe_policy(policy: EvidencePolicy) -> Iterator[str]:
    """One sentence a field; `*` marks what the policy sets, the others are defaults."""
    yield "All of the following must hold. A line with * is set in the file, the others are defaults."
    for name, _, title, words in TABLES:
        table = table_of(policy, name)
        if table is None and "." in name:  # the table it belongs to has said so
            continue
        yield ""
        if table is None:
            yield f"[{name}] {title}: {ABSENT.get(name, 'refused, because the policy has no such table')}"
        else:
            yield f"[{name}] {title}"
            for name_of_field, said, is_set in _sentences(table, words):
                yield f"  {'*' if is_set else ' '} {said}  ({name_of_field})"


def _tables(policy: EvidencePolicy) -> Iterator[dict[str, Any]]:
    """The same for programs: one object a table, one a field."""
    for name, _, title, words in TABLES:
        table = table_of(policy, name)
        said = [] if table is None else list(_sentences(table, words))
        rows = [{"field": name_of_field, "says": says, "set": is_set} for name_of_field, says, is_set in said]
        yield {"table": name, "title": title, "given": table is not None, "fields": rows}


def table_of(policy: Policy, name: str) -> Any:
    """The table with a dotted name; None where it or what holds it is missing."""
    value: Any = policy
    for part in name.split("."):
        value = None if value is None else getattr(value, part, None)
    return value


def _sentences(table: Any, words: Words) -> Iterator[tuple[str, str, bool]]:
    """Each field's name, what it says, and whether the policy sets it."""
    for spec in fields(table):
        value = getattr(table, spec.name)
        said = sentence(words[spec.name], value)
        if value is not None and spec.default is None and value == frozenset():
            said = "nothing is accepted: the list is empty"  # where no list at all would ask nothing
        yield spec.name, said, value != default_of(spec)


def sentence(words: tuple[str, str], value: Any) -> str:
    """A switch picks its words; a value fills them; nothing, none and zero are the words for "without"."""
    if isinstance(value, bool):
        return words[0] if value else words[1]
    empty = value is None or value == 0 or (isinstance(value, (tuple, frozenset)) and not value)
    return words[1] if empty else words[0].replace("{}", words_of(value))


def words_of(value: Any) -> str:
    """One value, as it stands in a sentence."""
    match value:
        case Root():
            vendor = "" if is_vendor(value) else ", which is NO hardware vendor's"
            return f"{value.name!r} ({value.spki_sha256.hex()[:16]}…{vendor})"
        case bytes():
            return "zero" if value and not any(value) else value.hex() or "an empty value"
        case tuple():
            return (
                " or ".join(map(words_of, value)) if not _floors(value) else "; ".join(map(words_of, value))
            )
        case frozenset():
            return " or ".join(sorted(map(words_of, value)))
        case StrEnum():
            return str(value)
        case str() if len(value) > _LONG:
            return f"a text of {len(value)} characters"
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        set_fields = [
            (f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default
        ]
        return " ".join(f"{name}={words_of(v)}" for name, v in set_fields)
    return str(value)


def _floors(value: tuple[Any, ...]) -> bool:
    return bool(value) and hasattr(value[0], "tcb")


def _read(file: Path, *, as_json: bool) -> EvidencePolicy:
    try:
        return read_policy(file)
    except AttestationError as exc:
        if as_json:
            typer.echo(json.dumps({"policy": False, "check": str(exc.check), "detail": exc.detail}))
        else:
            typer.echo(clean(str(exc)), err=True)
        raise typer.Exit(exit_code(exc)) from exc
