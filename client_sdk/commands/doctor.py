"""`attested doctor [URL]`: what stands between this machine and a verdict, and what to do about it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from attestation.errors import UnavailableError
from client_sdk.commands.options import AsJson, ChannelOption
from client_sdk.doctor import CHANNEL_STEP, Doctor, Finding, Health
from client_sdk.exits import ExitCode, exit_code
from client_sdk.present import clean, say, working
from client_sdk.transport import DEFAULT_CHANNEL

_STYLES = {Health.OK: "green", Health.FAILED: "bold red", Health.NOT_REACHED: "dim"}
_HEALTH, _STEP = 13, 26  # columns
_WIDE = 80  # from here on what was found has a column of its own


def doctor(
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Where the gateway should answer: https://host:port")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="What you accept (TOML); needed for a verdict."),
    ] = None,
    channel: ChannelOption = DEFAULT_CHANNEL,
    vendors: Annotated[
        bool, typer.Option("--vendors", help="Also see whether the vendors' services can be reached.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what stands between this machine and a verdict, step by step, and what to do about it.

    Looks at the policy file, the name, the connection, TLS, readiness, the evidence, both clocks, the collateral, the
    verdict and the channel. Sends the enclave nothing but what `attested verify` does. It leaves with 0 only when a
    request would leave now; else with the code of the first step that refuses, or 5. Without URL or policy there is no
    verdict, so that is 5, whatever else holds.
    """
    console, findings = Console(highlight=False), list[Finding]()
    steps = Doctor(url, policy, channel, datetime.now(UTC), vendors=vendors).examine()
    while True:
        with working("looking"):
            finding = next(steps, None)
        if finding is None:
            break
        findings.append(finding)
        if not as_json:
            _show(console, finding)
    code = gravest(findings)
    missing = [name for name, given in (("URL", url), ("--policy", policy)) if given is None]
    if code is ExitCode.UNDECIDED and missing and not as_json:
        console.print(
            f"no verdict, without {' and '.join(missing)}: nothing here says that an enclave can be trusted"
        )
    if as_json:
        typer.echo(json.dumps({"ok": code is ExitCode.ACCEPT, "steps": [_plain(f) for f in findings]}))
    raise typer.Exit(code)


def gravest(findings: list[Finding]) -> ExitCode:
    """The code of the first failure that decides something; failures that leave it open, and no verdict, are code 5."""
    failed = [finding for finding in findings if finding.health is Health.FAILED]
    for finding in failed:
        if finding.error is not None and not isinstance(finding.error, UnavailableError):
            return exit_code(finding.error)
    return ExitCode.UNDECIDED if failed or not _would_leave(findings) else ExitCode.ACCEPT


def _would_leave(findings: list[Finding]) -> bool:
    return any(f.step == CHANNEL_STEP and f.health is Health.OK for f in findings)


def _show(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.health:<{_HEALTH}}", style=_STYLES[finding.health])
    line.append(f"{finding.step:<{_STEP}}", style="default")
    line.append(clean(finding.found), style="default")
    say(console, line, hang=_HEALTH + _STEP if console.width >= _WIDE else _HEALTH)
    if finding.advice:
        say(console, Text(f"{'':<{_HEALTH}}→ {clean(finding.advice)}"), hang=_HEALTH + 2)


def _plain(finding: Finding) -> dict[str, str | None]:
    check = None if finding.error is None else str(finding.error.check)
    return {
        "step": finding.step,
        "state": str(finding.health),
        "found": finding.found,
        "check": check,
        "advice": finding.advice,
    }
