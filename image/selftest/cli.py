"""`enclave-server image selftest OUT`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from image.measure.profiles import profile_named
from image.selftest.run import selftest as run

PROFILE = "qemu10-edk2-2022.11"  # Debian 12 with QEMU of its backports


def selftest(
    out: Annotated[Path, typer.Argument(help="A folder made by `enclave-server image build`.")],
    profile: Annotated[str, typer.Option(help="QEMU and firmware of this machine, by name.")] = PROFILE,
) -> None:
    """Boot the image without special hardware: what it measures is what was predicted, it serves, and every change to it is caught."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no machine outlives this program
    start = time.monotonic()
    run(out, profile=profile_named(profile), say=typer.echo)
    typer.echo(f"{out}: all as predicted, in {time.monotonic() - start:.0f} s")
