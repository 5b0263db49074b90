"""`enclave-server model …`: the digest of a model, and its publisher's signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enclave_server.model import SIGNATURE, Manifest, ModelError, ModelProblem, check_model, read_manifest
from enclave_server.model_signature import (
    check_publisher,
    parse_private_key,
    parse_public_key,
    sign_manifest,
)

cli = typer.Typer(no_args_is_help=True, help="The model's files.")


@cli.command()
def digest(
    directory: Path, files: Annotated[bool, typer.Option(help="Print the manifest too.")] = False
) -> None:
    """Print the model digest of a directory, for `model_digest` in the settings."""
    manifest = read_manifest(directory)
    if files:
        for file in manifest.files:
            typer.echo(f"{file.sha256}  {file.size:>12}  {file.path}")
    typer.echo(manifest.digest().hex())


@cli.command()
def sign(
    directory: Path,
    key: Annotated[Path, typer.Option("--key", help="Private key in PEM: P-256, P-384 or P-521.")],
    name: Annotated[str | None, typer.Option("--id", help="What it is, such as repo@revision.")] = None,
) -> None:
    """Sign a model's files as their publisher: writes model.sig into the directory, and prints the model digest."""
    private = parse_private_key(key.read_bytes())
    manifest = read_manifest(directory)
    _refuse_links(directory, manifest)
    signature = sign_manifest(manifest, private, name=name or directory.resolve().name)
    (directory / SIGNATURE).write_bytes(signature)
    typer.echo(manifest.digest().hex())


@cli.command()
def verify(
    directory: Path,
    key: Annotated[Path | None, typer.Option("--key", help="The publisher's public key in PEM.")] = None,
    expected: Annotated[str | None, typer.Option("--digest", help="The model digest it must have.")] = None,
) -> None:
    """Hold a model's files against its publisher's signature, a model digest, or both."""
    if key is None and expected is None:
        raise ModelError(
            ModelProblem.NOTHING_EXPECTED,
            "there is nothing to verify the model by",
            advice="Give the publisher's key (--key), the model digest (--digest), or both",
        )
    public = None if key is None else parse_public_key(key.read_text(errors="replace"))
    manifest = read_manifest(directory) if expected is None else check_model(directory, expected.lower())
    if public is not None:
        signed = check_publisher(directory, manifest, public)
        typer.echo(f"signed by the key, as {signed.name!r}")
    typer.echo(manifest.digest().hex())


def _refuse_links(directory: Path, manifest: Manifest) -> None:
    links = [file.path for file in manifest.files if (directory / file.path).is_symlink()]
    if links:
        raise ModelError(
            ModelProblem.FILE,
            f"{directory / links[0]} is a link, which others refuse in a signed model",
            advice="Copy the model with its links followed: cp -rL",
        )
