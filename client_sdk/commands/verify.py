"""`attested verify URL`: one enclave's chain of trust, one line for each link."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attestation.errors import AttestationError
from client_sdk.commands.foreign import CollateralFile, verify_foreign
from client_sdk.commands.options import AsJson, ChannelOption, Url
from client_sdk.exits import exit_code
from client_sdk.foreign.fetch import Provider
from client_sdk.outcome import ask, foreign, lines_of, proven
from client_sdk.present import result, show, working
from client_sdk.terms import load_policy
from client_sdk.transport import DEFAULT_CHANNEL

PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="What you accept (TOML); see docs/policy.md. Without it, other providers' formats are asked for.",
    ),
]
ProviderOption = Annotated[
    Provider | None,
    typer.Option(help="Ask for evidence in another provider's format, 'auto' for the first that is there."),
]


def verify(
    url: Url,
    policy: PolicyOption = None,
    channel: ChannelOption = DEFAULT_CHANNEL,
    provider: ProviderOption = None,
    collateral: CollateralFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask an enclave for evidence and judge it; send it nothing else.

    One line for each link of the chain of trust says whether it was reached and held; a check that fails stops
    the chain, and is named with what was expected, what was found and what to do.

    With --policy alone, only a gateway of attested inference will do. Otherwise other providers' published formats
    are recognised, and judged as far as they go: Tinfoil's, dstack's (Phala, NEAR), nitriding's, RA-TLS.
    """
    if policy is None or provider is not None:
        verify_foreign(url, provider or Provider.AUTO, policy, collateral, as_json=as_json)
    if collateral is not None:
        raise typer.BadParameter("--collateral is for other providers' evidence; ours brings its own")
    verdict, error, notes = None, None, []
    try:
        accepted = load_policy(policy)
        notes = foreign(accepted)
        with working(f"asking {url} for evidence"):
            verdict = ask(url, accepted, channel)
    except AttestationError as exc:
        error = exc
    lines = lines_of(error, channel, gpus=verdict is not None and bool(verdict.gpus))
    if as_json:
        links = [{"link": line.title, "state": str(line.state)} for line in lines]
        found = {"url": url, "links": links, "simulated": None if verdict is None else verdict.simulated}
        typer.echo(json.dumps({**result(error, verdict), **found}))
    else:
        notes += [] if verdict is None else proven(verdict)
        show(Console(highlight=False), url, lines, error, notes)
    raise typer.Exit(exit_code(error))
