"""Arguments and options that several commands of `attested` share: one name, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client_sdk.sealing import Channel

Url = Annotated[str, typer.Argument(metavar="URL", help="Where the gateway answers: https://host:port")]
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
