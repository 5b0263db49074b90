"""`attested`: the client on the command line. Here is only the list of its commands; each has a module of its own.

Exit codes: 0 accepted, 2 malformed, 3 not authentic, 4 refused by the policy, 5 could not decide, 64 wrong usage.
"""

from __future__ import annotations

from typing import Annotated

import typer

from client_sdk.commands import collateral, evidence, log, policy
from client_sdk.commands.audit import audit
from client_sdk.commands.chat import chat
from client_sdk.commands.disclose import disclose
from client_sdk.commands.doctor import doctor
from client_sdk.commands.examples import EXIT_CODES
from client_sdk.commands.explain import explain_boot
from client_sdk.commands.foreign import foreign
from client_sdk.commands.inspect import inspect
from client_sdk.commands.lock import diff, lock_enclave
from client_sdk.commands.provision import provision
from client_sdk.commands.proxy import env, proxy
from client_sdk.commands.replay import replay
from client_sdk.commands.report import report
from client_sdk.commands.root import Commands
from client_sdk.commands.verify import verify
from client_sdk.installed import installed

TALK, JUDGE, PREPARE = "Talk to an enclave", "Judge what others collected", "Prepare"

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Verify an enclave before you talk to it, and every answer after.",
    epilog=EXIT_CODES,
)
app.command(rich_help_panel=TALK)(verify)
app.command(rich_help_panel=TALK)(chat)
app.command(rich_help_panel=TALK)(proxy)
app.command(rich_help_panel=TALK)(env)
app.command(rich_help_panel=TALK)(doctor)
app.command(rich_help_panel=TALK)(provision)
app.command(rich_help_panel=JUDGE)(audit)
app.command(rich_help_panel=JUDGE)(disclose)
app.command(rich_help_panel=JUDGE)(replay)
app.command(rich_help_panel=JUDGE)(report)
app.command(rich_help_panel=JUDGE)(inspect)
app.command("explain", rich_help_panel=JUDGE)(explain_boot)
app.add_typer(log.app, name="log", rich_help_panel=JUDGE)
evidence.app.command()(foreign)
app.add_typer(evidence.app, name="evidence", rich_help_panel=JUDGE)
app.command("lock", rich_help_panel=PREPARE)(lock_enclave)
app.command(rich_help_panel=PREPARE)(diff)
app.add_typer(policy.app, name="policy", rich_help_panel=PREPARE)
app.add_typer(collateral.app, name="collateral", rich_help_panel=PREPARE)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(installed())
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """The console script."""
    app()
