"""`enclave-server image selftest OUT`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from image.measure.profiles import PROFILES, profile_named
from image.selftest.run import selftest as run


def selftest(
    out: Annotated[Path, typer.Argument(help="A folder made by `enclave-server image build`.")],
    profile: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PROFILES)}. The one that fits the first boot, unless given."),
    ] = None,
) -> None:
    """Boot the image without special hardware: what it measures is what was predicted, it serves, and every change to it is caught."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no machine outlives this program
    start = time.monotonic()
    profiles = PROFILES if profile is None else {profile: profile_named(profile)}
    run(out, profiles=profiles, say=typer.echo)
    typer.echo(f"{out}: all as predicted, in {time.monotonic() - start:.0f} s")
