"""`attested audit FILE|DIR`: saved exchanges verified again, offline, one or many, with every core."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from attestation.disclosure import Disclosure, Part, Shown
from attestation.errors import AttestationError
from client_sdk.audit_work import Refused, Tally, Terms, audit_path
from client_sdk.commands.options import AsJson, PolicyFile
from client_sdk.exits import ExitCode
from client_sdk.files import parse_time
from client_sdk.present import clean
from client_sdk.terms import load_policy

SHOWN = 20  # refused exchanges that are told one by one; --json has all
_HEADS = {"accept": "ACCEPTED", "refuse": "REFUSED", "undecided": "COULD NOT DECIDE"}
_GRAVEST_FIRST = (ExitCode.NOT_AUTHENTIC, ExitCode.MALFORMED, ExitCode.POLICY, ExitCode.UNDECIDED)


def audit(
    path: Annotated[
        Path,
        typer.Argument(metavar="FILE|DIR", help="A bundle or a disclosure, or a folder of them (*.json)."),
    ],
    policy: PolicyFile,
    at: Annotated[
        datetime | None,
        typer.Option("--at", parser=parse_time, metavar="TIME", help="In place of each receipt's own time."),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, metavar="N", help="Processes; one for each core unless given.")
    ] = 0,
    logged: Annotated[
        bool, typer.Option("--logged", help="Refuse what is not shown to be in the enclave's log.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify saved exchanges again: receipts, the saved bytes, and the evidence as of each receipt's time. Offline.

    It also tells what would be refused if the evidence were judged now.
    """
    tally = Tally()
    try:
        terms = Terms(load_policy(policy), at, datetime.now(UTC), logged)
        if path.is_dir() and not any(path.glob("*.json")):
            raise typer.BadParameter(f"{path} has no *.json")
        tally = _with_bar(path, terms, jobs or os.cpu_count() or 1)
    except AttestationError as error:
        tally.refuse(path, 0, error)
    if as_json:
        typer.echo(json.dumps(summary(tally)))
    else:
        for line in _words(tally):
            typer.echo(clean(line))
    raise typer.Exit(gravest(tally.refused))


def gravest(refused: Iterable[Refused]) -> ExitCode:
    """One exit code for many outcomes."""
    found = {one.code for one in refused}
    return next((code for code in _GRAVEST_FIRST if code in found), ExitCode.ACCEPT)


def outcome_of(code: ExitCode) -> str:
    """The word for an exit code, as in every `--json`."""
    return {ExitCode.ACCEPT: "accept", ExitCode.UNDECIDED: "undecided"}.get(code, "refuse")


def _with_bar(path: Path, terms: Terms, jobs: int) -> Tally:
    console = Console(stderr=True)
    if not console.is_terminal:
        return audit_path(path, terms, jobs)
    with Progress(console=console, transient=True, auto_refresh=False) as progress:  # no thread: it may fork
        bar = progress.add_task("auditing", total=None)

        def advance(done: int, of: int) -> None:
            progress.update(bar, completed=done, total=of, refresh=True)

        return audit_path(path, terms, jobs, advance)


def summary(tally: Tally) -> dict[str, object]:
    """The one object that `--json` prints."""
    return {
        "verdict": outcome_of(gravest(tally.refused)),
        "exchanges": tally.exchanges,
        "held": tally.held,
        "digests_only": tally.digests_only,
        "logged": tally.logged,
        "outcomes": dict(tally.outcomes),
        "statements": sorted(tally.statements),
        "simulated": tally.simulated,
        "refused": [
            {key: asdict(one)[key] for key in ("file", "exchange", "check", "detail", "advice")}
            for one in tally.refused
        ],
        "today": sorted(tally.today),
        "disclosed": [_disclosed(file, disclosure) for file, disclosure in tally.disclosed],
    }


def _disclosed(file: str, disclosure: Disclosure) -> dict[str, Any]:
    """The shown parts as text, null for each hidden one."""

    def texts(parts: Sequence[Part]) -> list[str | None]:
        return [_text(part) if isinstance(part, Shown) else None for part in parts]

    return {"file": file, "messages": texts(disclosure.messages), "choices": texts(disclosure.choices)}


def _text(part: Shown) -> str:
    return part.value.decode(errors="replace")


def _words(tally: Tally) -> Iterator[str]:
    head = _HEADS[outcome_of(gravest(tally.refused))]
    yield (
        f"{head}  {tally.held} of {tally.exchanges} exchanges hold, "
        f"with {len(tally.statements)} statement(s) of enclaves"
    )
    for outcome, count in sorted(tally.outcomes.items()):
        yield f"  {outcome}: {count}"
    if tally.held:
        yield f"  logged: {tally.logged or 'none'}, not logged: {tally.held - tally.logged or 'none'}"
    for one in tally.refused[:SHOWN]:
        told = f"[{one.check}] {one.detail}"  # of a file that could not be read its name, too
        yield told if one.detail.startswith(one.file) else f"{one.file}, exchange {one.exchange}: {told}"
        if one.advice:
            yield f"  {one.advice}"
    if len(tally.refused) > SHOWN:
        yield f"… and {len(tally.refused) - SHOWN} more (--json lists all)"
    for file, disclosure in tally.disclosed:
        yield from _words_of_parts(file, disclosure)
    if tally.digests_only:
        yield (
            f"note: {tally.digests_only} were saved without all of their bytes: "
            "their digests stand, and nothing was compared with them"
        )
    if tally.simulated:
        yield "note: SIMULATED: a root that is no hardware vendor's; this proves nothing about hardware"
    for reason in sorted(tally.today):
        yield f"today: the evidence would be refused: {reason}"


def _words_of_parts(file: str, disclosure: Disclosure) -> Iterator[str]:
    parts = [(f"message {i}", part) for i, part in enumerate(disclosure.messages)]
    parts += [(f"choice {i}", part) for i, part in enumerate(disclosure.choices)]
    for name, part in parts:
        if isinstance(part, Shown):
            yield f"{file}, {name}: {_text(part)}"
    hidden = [name for name, part in parts if not isinstance(part, Shown)]
    yield f"{file}, hidden: {', '.join(hidden) or 'nothing'}"
    yield f"note: what is hidden in {file} may change the sense of what is shown"
