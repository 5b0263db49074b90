"""`attested`: the client on the command line. Here is only the list of its commands; each has a module of its own, which
is imported when it is run.

Exit codes: 0 accepted, 2 malformed, 3 not authentic, 4 refused by the policy, 5 could not decide, 64 wrong usage.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from client_sdk.commands.examples import EXIT_CODES
from client_sdk.commands.root import Commands, Later

# by panel of the help: where each command's function or group is, and its line in the list
COMMANDS = {
    "Talk to an enclave": {
        "verify": ("verify:verify", "Ask an enclave for evidence and judge it; send it nothing else."),
        "chat": ("chat:chat", "Ask a model; its answer is streamed, and verified at its end."),
        "proxy": (
            "proxy:proxy",
            "Give any program a plain OpenAI endpoint on loopback whose every answer was verified.",
        ),
        "env": (
            "proxy:env",
            'Print what to export so that programs use the proxy: eval "$(attested env)".',
        ),
        "doctor": (
            "doctor:doctor",
            "Say what stands between this machine and a verdict, step by step, and what to do about it.",
        ),
        "provision": (
            "provision:provision",
            "Verify an enclave, and give it the secrets that it waits for: signed by its owner, and sealed to it alone.",
        ),
    },
    "Judge what others collected": {
        "audit": (
            "audit:audit",
            "Verify saved exchanges again: receipts, the saved bytes, and the evidence as of each receipt's time. Offline.",
        ),
        "disclose": (
            "disclose:disclose",
            "Show one message of a chat without the rest; `attested audit` verifies what is shown.",
        ),
        "replay": (
            "replay:replay",
            "Run a saved answer again on another node with the same model and engine, and compare it token by token.",
        ),
        "report": (
            "report:report",
            "Audit one exchange of a bundle, and make a page of it that checks its signatures again in any browser.",
        ),
        "inspect": (
            "inspect:inspect",
            "Say what a file is and what it says. Nothing is verified: anyone could have written it.",
        ),
        "explain": (
            "explain:explain_boot",
            "Say why a machine measures something else than a release should: the first event that differs, and what makes it.",
        ),
        "log": ("log:app", "Logs of receipts: see that they only grow, and prove what is in them."),
        "evidence": (
            "evidence:app",
            "Judge raw evidence: a quote, report or document, and nothing of ours.",
        ),
    },
    "Prepare": {
        "lock": (
            "lock:lock_enclave",
            "Verify an enclave, show what it is, and write a policy that accepts exactly that and nothing older.",
        ),
        "diff": (
            "lock:diff",
            "Say in words what one policy or lock accepts and demands otherwise than another.",
        ),
        "policy": ("policy:app", "Read policy files."),
        "collateral": ("collateral:app", "Get what vendors publish beside evidence."),
    },
}


class _Listed(Commands):
    """The root with its commands."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for panel, commands in COMMANDS.items():
            for name, (home, line) in commands.items():
                self.add_command(Later(name, home, line, panel))


app = typer.Typer(
    cls=_Listed,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Verify an enclave before you talk to it, and every answer after.",
    epilog=EXIT_CODES,
)


def _version(asked: bool) -> None:
    if asked:
        from client_sdk.installed import installed  # noqa: PLC0415 - for this alone

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
