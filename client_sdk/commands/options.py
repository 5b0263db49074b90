"""Arguments and options that several commands of `attested` share: one name, one help text."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from client_sdk.files import parse_time
from client_sdk.sealing import Channel


def check_address(url: str) -> str:
    """Which schemes will do is for the transport to say; what is no address of anything is wrong usage."""
    if "://" not in url:
        raise typer.BadParameter(f"{url!r} is no URL; is https://{url} meant?")
    try:
        where = urlsplit(url)
        if where.hostname and where.port != 0:
            return url
    except ValueError:  # a port beyond 65535, brackets around no address
        pass
    raise typer.BadParameter(f"{url!r} names no host and port: expected https://host:port")


Url = Annotated[
    str,
    typer.Argument(
        metavar="URL", callback=check_address, help="Where the gateway answers: https://host:port"
    ),
]
EvidenceFile = Annotated[Path, typer.Argument(metavar="FILE", help="Raw, in hex or in base64.")]
PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="What you accept (TOML); see docs/policy.md.")
]
JudgedBy = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="A policy (TOML). Without it, measurements are not judged."
    ),
]
RootFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", metavar="PEM", help="Trust this certificate's key alone, in place of the vendor's roots."
    ),
]
At = Annotated[
    datetime | None,
    typer.Option(
        "--at", parser=parse_time, metavar="TIME", help="RFC 3339 or Unix seconds; the present unless given."
    ),
]
ChannelOption = Annotated[
    Channel,
    typer.Option(
        "--channel", help="What protects requests; 'sealed' where a balancer ends TLS before the enclave."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
