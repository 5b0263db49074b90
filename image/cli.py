"""`enclave-server image …`: the VM's image, from its build to the numbers it must show. docs/rebuild.md leads through it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated

import typer

from attestation.errors import AttestationError
from client_sdk.present import clean
from enclave_server.commands.usage import in_capitals
from image.build import STEPS, Target, build_image
from image.errors import MISSING, ImageError
from image.launch import launch
from image.measure.cli import measure_image
from image.refs_cli import cli as refs_cli
from image.repro import repeat
from image.selftest.cli import selftest
from image.source import CHANGED

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="The image of the confidential VM.")

cli.command()(launch)
cli.command()(selftest)
cli.command("measure")(measure_image)

APPS = {"image": cli, "refs": refs_cli}  # each is a command of `enclave-server`

Out = Annotated[Path, typer.Argument(help="A folder made by `enclave-server image build`.")]


def main(name: str, arguments: list[str]) -> None:
    """Run the command `name` of `enclave-server`. What an operator can mend is one line on standard error."""
    try:
        in_capitals(APPS[name])(arguments, prog_name=f"enclave-server {name}")
    except ImageError as exc:
        typer.echo(f"{'SKIPPED' if exc.status == MISSING else 'enclave-server'}: {exc}", err=True)
        raise SystemExit(exc.status) from None
    except AttestationError as exc:  # of a file that was given
        typer.echo(f"enclave-server: {clean(str(exc))}", err=True)
        raise SystemExit(1) from None


@cli.command()
def build(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write; replaced where it exists.")],
    config: Annotated[Path, typer.Option("--config", help="The configuration, measured byte for byte.")],
    target: Annotated[Target, typer.Option(help="Stage of Dockerfile.enclave.")] = Target.CPU,
    disk: Annotated[bool, typer.Option("--disk", help="Write disk.raw too, for clouds.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not tell how far it is.")] = False,
) -> None:
    """Build the image: kernel, initrd, root file system with its dm-verity tree, command line, UKI, image.json."""
    steps = itertools.count(1)

    def say(step: str) -> None:
        if not quiet:
            typer.echo(f"{next(steps)}/{STEPS} {step}", err=True)

    built = build_image(out, config=config.read_bytes(), target=target, disk=disk, say=say)
    typer.echo(f"{out}: build {built.id}")
    if built.description["source"].endswith(CHANGED):
        typer.echo(
            "nobody else can make it again: the clone has files or changes that git does not know", err=True
        )


@cli.command()
def repro(out: Out) -> None:
    """Build again from nothing, elsewhere, and compare: names the first file that differs, and ends with 1."""
    typer.echo(repeat(out))
