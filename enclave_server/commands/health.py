"""`enclave-server health`: what a container's health check or a service manager asks."""

from __future__ import annotations

import http.client
import ssl
from typing import Annotated

import typer

from enclave_server.commands.options import Config
from enclave_server.settings import Settings

SECONDS = 4.0  # for an answer; service managers commonly wait a little longer
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a listener is reached from here


def health(
    config: Config = None,
    ready: Annotated[
        bool, typer.Option(help="Ask whether it can answer, not just whether it lives.")
    ] = False,
) -> None:
    """Ask the gateway of this configuration, on this machine, how it is. Exit status 1 says: not well."""
    settings = Settings.load(config)
    host = _WILDCARDS.get(settings.host, settings.host)
    # Whose key it is does not matter here: whether to trust it is for clients to find out.
    anybody = ssl._create_unverified_context()  # noqa: S323, SLF001
    connection = http.client.HTTPSConnection(host, settings.port, timeout=SECONDS, context=anybody)
    try:
        connection.request("GET", "/readyz" if ready else "/healthz")
        answer = connection.getresponse()
        text = answer.read(4096).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as exc:
        typer.echo(f"no answer from {host}:{settings.port}: {exc}", err=True)
        raise typer.Exit(1) from None
    finally:
        connection.close()
    typer.echo(text)
    if answer.status != 200:
        raise typer.Exit(1)
