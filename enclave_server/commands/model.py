"""`enclave-server model …`: the digest of a model, its publisher's signature, and its image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from enclave_server.commands.usage import group
from enclave_server.model.image import make_image, salt_of, verify_image
from enclave_server.model.manifest import (
    SIGNATURE,
    Manifest,
    ModelError,
    ModelProblem,
    check_digest,
    check_model,
    read_manifest,
)
from enclave_server.model.pack import parse_key, read_pack, write_pack
from enclave_server.model.signature import (
    check_publisher,
    parse_private_key,
    parse_public_key,
    sign_manifest,
)

cli = group("The model's files.")


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
    typer.echo(_sign(directory, key, name or directory.resolve().name).digest().hex())


@cli.command()
def pack(
    directory: Path,
    name: Annotated[str, typer.Option("--id", help="What it is: repo@revision.")],
    key: Annotated[Path | None, typer.Option("--key", help="Sign it with this private key in PEM.")] = None,
    erofs: Annotated[Path | None, typer.Option("--erofs", help="Write it as a verity image here.")] = None,
    encrypt: Annotated[
        Path | None, typer.Option("--encrypt", metavar="KEYFILE", help="Encrypt it with these 32 bytes.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it encrypted here.")] = None,
) -> None:
    """Make a model ready to be served: hash it, sign it, make a read-only image of it. Prints what settings need."""
    salt_of(name)
    if (encrypt is None) != (out is None):
        raise typer.BadParameter("--encrypt and --out belong together")
    manifest = read_manifest(directory) if key is None else _sign(directory, key, name)
    typer.echo(f'model_digest = "{manifest.digest().hex()}"')
    if erofs is not None:
        image = make_image(directory, erofs, name)
        typer.echo(
            f"# {erofs} is {name}, root hash {image.root_hash.hex()}; to open it:\n# {image.command(erofs, 'model')}"
        )
    if encrypt is not None and out is not None:
        write_pack(directory, out, parse_key(encrypt.read_bytes()), model_id=name)
        typer.echo(f"# {out} is {name}, encrypted; for the settings, with the key as the secret model_key:")
        typer.echo(f'# model_pack = "{out}"\n# model_dir = "/run/enclave/model"')


@cli.command()
def verify(
    model: Annotated[Path, typer.Argument(help="A directory, an image, or an encrypted pack.")],
    key: Annotated[Path | None, typer.Option("--key", help="The publisher's public key in PEM.")] = None,
    expected: Annotated[str | None, typer.Option("--digest", help="The model digest it must have.")] = None,
    root_hash: Annotated[str | None, typer.Option("--root-hash", help="The root hash of an image.")] = None,
    name: Annotated[str | None, typer.Option("--id", help="The id of an image: repo@revision.")] = None,
    pack_key: Annotated[
        Path | None, typer.Option("--decrypt", metavar="KEYFILE", help="The key of an encrypted pack.")
    ] = None,
) -> None:
    """Hold a model's files against its publisher's signature, a model digest, or both; an image against its root hash."""
    if pack_key is not None and expected is not None and (key, root_hash, name) == (None, None, None):
        packed = read_pack(model, parse_key(pack_key.read_bytes()))
        check_digest(packed, expected.lower(), model)
        typer.echo(packed.digest().hex())
        return
    if root_hash is not None and name is not None and key is None and expected is None:
        verify_image(model, _hash(root_hash), name)
        typer.echo(f"{model} is {name}, root hash {root_hash.lower()}")
        return
    if (key is None and expected is None) or (root_hash, name, pack_key) != (None, None, None):
        raise ModelError(
            ModelProblem.NOTHING_EXPECTED,
            "there is nothing to verify the model by",
            advice="For a directory give the publisher's key (--key), the model digest (--digest), or both; "
            "for an image --root-hash and --id, and verify its files where it is mounted; "
            "for an encrypted pack its key (--decrypt) and --digest",
        )
    public = None if key is None else parse_public_key(key.read_text(errors="replace"))
    manifest = read_manifest(model) if expected is None else check_model(model, expected.lower())
    if public is not None:
        signed = check_publisher(model, manifest, public)
        typer.echo(f"signed by the key, as {signed.name!r}")
    typer.echo(manifest.digest().hex())


def _sign(directory: Path, key: Path, name: str) -> Manifest:
    private = parse_private_key(key.read_bytes())
    manifest = read_manifest(directory)
    _refuse_links(directory, manifest)
    (directory / SIGNATURE).write_bytes(sign_manifest(manifest, private, name=name))
    return manifest


def _hash(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise ModelError(
            ModelProblem.IMAGE, f"{text!r} is no root hash", advice="Give what `model pack` printed"
        ) from None


def _refuse_links(directory: Path, manifest: Manifest) -> None:
    links = [file.path for file in manifest.files if (directory / file.path).is_symlink()]
    if links:
        raise ModelError(
            ModelProblem.FILE,
            f"{directory / links[0]} is a link, which others refuse in a signed model",
            advice="Copy the model with its links followed: cp -rL",
        )
