"""`attested lock URL` and `attested diff OLD NEW`: what an enclave is today, in a file; and what changed since."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attestation.errors import AttestationError
from attestation.policy import Policy
from client_sdk.commands.ending import leave, not_written
from client_sdk.commands.options import AsJson, ChannelOption, Url
from client_sdk.exits import ExitCode, exit_code
from client_sdk.files import replace_file
from client_sdk.lock import FIRST_SIGHT, lock
from client_sdk.outcome import ask, foreign, lines_of, proven
from client_sdk.policy_diff import differences
from client_sdk.policy_toml import dump_policy
from client_sdk.present import clean, show, working
from client_sdk.terms import load_policy, reviewed
from client_sdk.transport import DEFAULT_CHANNEL

_HEAD = """\
# Made by `attested lock` on {made:%Y-%m-%dT%H:%M:%SZ} from what {url} showed.
# A policy like any other: give it to the SDK, the proxy and every command that takes one.
"""


def lock_enclave(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    url: Url,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="What must hold already now; the vendors' roots alone unless given.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the lock goes.")
    ] = Path("attest.lock"),
    name: Annotated[
        str | None, typer.Option("--name", help="What to remember it by; the host's name unless given.")
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, help="How long the lock is in force.")] = 90,
    machine: Annotated[bool, typer.Option("--machine", help="Accept this very machine alone.")] = False,
    no_gpu: Annotated[bool, typer.Option("--no-gpu", help="Accept an enclave without a GPU.")] = False,
    channel: ChannelOption = DEFAULT_CHANNEL,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask: for scripts, after somebody has looked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify an enclave, show what it is, and write a policy that accepts exactly that and nothing older.

    The first lock trusts what is there now, as long as the hardware is genuine and up to date; hold the digests that are shown
    against those that the operator publishes. Where the file is there already, what changed is shown before it is replaced.
    """
    accepted = None
    try:
        old = load_policy(output) if output.exists() else None
        accepted, signed = reviewed(policy) if policy is not None else (FIRST_SIGHT, "")
        accepted = replace(accepted, gpu=replace(accepted.gpu, required=False)) if no_gpu else accepted
        with working(f"verifying {url}"):
            verdict = ask(url, accepted, channel)
    except AttestationError as error:
        if as_json:
            leave(error, as_json=True)
        gpus = accepted is not None and accepted.gpu.required
        show(Console(stderr=True, highlight=False), url, lines_of(error, channel, gpus=gpus), error)
        raise typer.Exit(exit_code(error)) from error
    now = datetime.now(UTC).replace(microsecond=0)
    made = lock(
        verdict,
        accepted,
        name=name or accepted.release.name or url.split("//")[-1].rstrip("/"),
        expires=now + timedelta(days=days),
        machine=machine,
    )
    values = [f"reference values: {signed}"] if signed else []
    facts = [*proven(verdict), *values, *foreign(accepted)]
    if not as_json:
        for line in [*facts, *_shown(old, made)]:
            typer.echo(clean(line))
    _confirm(output, yes=yes)
    try:
        replace_file(output, _text(made, now, url, values).encode())
    except OSError as exc:
        not_written(output, exc, as_json=as_json)
    if as_json:
        changes = list(differences(old, made)) if old is not None else None
        typer.echo(
            json.dumps({"file": str(output), "until": _date(made), "facts": facts, "changes": changes})
        )
    else:
        typer.echo(f"{output}: in force until {_date(made)}")


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A policy or a lock.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Say in words what one policy or lock accepts and demands otherwise than another.

    Leaves with 0 when nothing differs, and with 1 when something does.
    """
    try:
        lines = list(differences(load_policy(old), load_policy(new)))
    except AttestationError as error:
        leave(error, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"differs": bool(lines), "lines": lines}))
    else:
        for line in lines or ["nothing differs"]:
            typer.echo(clean(line))
    raise typer.Exit(ExitCode.DIFFERS if lines else ExitCode.ACCEPT)


def _text(made: Policy, now: datetime, url: str, values: Sequence[str]) -> str:
    """The lock, and above it what made it; also who signed the values that it is a part of."""
    said = "".join(f"# By {clean(line)}.\n" for line in values)
    return f"{_HEAD.format(made=now, url=clean(url))}{said}\n{dump_policy(made)}"


def _date(made: Policy) -> str | None:
    """Never later than the policy that it was made under."""
    ends = made.release.expires
    return None if ends is None else f"{ends:%Y-%m-%dT%H:%M:%SZ}"


def _shown(old: Policy | None, made: Policy) -> list[str]:
    if old is None:
        return ["", "The lock:", "", *dump_policy(made).splitlines()]
    return ["", "What changes:", *(list(differences(old, made)) or ["nothing"])]


def _confirm(output: Path, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        typer.echo("Nobody is there to be asked; --yes writes it all the same", err=True)
        raise typer.Exit(ExitCode.USAGE)
    if not typer.confirm(f"Write {output}?"):
        raise typer.Exit(ExitCode.POLICY)
