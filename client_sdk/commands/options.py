"""Arguments and options that several commands of `attested` share: one name, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client_sdk.sealing import Channel


def _with_scheme(url: str) -> str:
    """Which schemes will do is for the transport to say."""
    if "://" not in url:
        raise typer.BadParameter(f"{url!r} is no URL; is https://{url} meant?")
    return url


Url = Annotated[
    str,
    typer.Argument(metavar="URL", callback=_with_scheme, help="Where the gateway answers: https://host:port"),
]
EvidenceFile = Annotated[Path, typer.Argument(metavar="FILE", help="Raw, in hex or in base64.")]
PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="What you accept (TOML); see docs/policy.md.")
]
ChannelOption = Annotated[
    Channel,
    typer.Option(
        "--channel", help="What protects requests; 'sealed' where a balancer ends TLS before the enclave."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
