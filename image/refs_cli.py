"""`enclave-server refs …`: reference values from the build to the client. docs/references.md leads through it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Annotated

import rfc8785
import typer

from attestation.ear import SigningKey, load_signing_key
from attestation.errors import AttestationError
from attestation.minisign import MinisignKey, verify_minisign
from attestation.references import (
    References,
    dump_references,
    parse_envelope,
    parse_references,
    read_references,
)
from attestation.release import Machines, Release
from attestation.reviewers import Reviewer, signed_by
from client_sdk.files import parse_hex, parse_time, read_raw, replace_file
from client_sdk.present import clean
from image.errors import ImageError
from image.refs import DAY, Edition, add, retire, revoke, sign_edition, statement_of
from image.refs_keyless import sign_keyless

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Reference values: which releases clients accept, and until when.",
)

Refs = Annotated[
    Path, typer.Argument(metavar="REFS", help="The reference values, replaced by the next edition.")
]
Values = Annotated[Path, typer.Argument(metavar="REFS", help="The reference values.")]
Previous = Annotated[
    Path | None, typer.Option("--previous", metavar="FILE", help="The envelope that clients have now.")
]
Days = Annotated[
    int | None,
    typer.Option("--days", min=1, help="How long the next edition lasts; as long as this one, unless given."),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it here, and leave REFS.")
]


@cli.command(name="add")
def add_releases(
    refs: Refs,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="What `image measure` wrote of a newer build.")],
    name: Annotated[str | None, typer.Option("--id", help="Call the one release in NEW this.")] = None,
    overlap: Annotated[
        int, typer.Option("--overlap", min=0, metavar="DAYS", help="How long those before are accepted too.")
    ] = 30,
    chip_ids: Annotated[
        list[str] | None,
        typer.Option("--chip-id", metavar="HEX", help="Only on this chip of AMD's; again for more."),
    ] = None,
    ppids: Annotated[
        list[str] | None, typer.Option("--ppid", metavar="HEX", help="Only on this machine of Intel's.")
    ] = None,
    days: Days = None,
    output: Output = None,
) -> None:
    """Put a new release in. Those before end after the overlap, so that machines can follow one by one."""
    newer = read_references(read_raw(new))
    if name is not None:
        if len(newer.releases) != 1:
            raise ImageError(f"--id names one release, and {new} has {len(newer.releases)}")
        newer = replace(newer, releases=(replace(newer.releases[0], id=name),))
    if chip_ids or ppids:
        machines = _machines(chip_ids or [], ppids or [])
        newer = replace(newer, releases=tuple(replace(r, machines=machines) for r in newer.releases))
    edition = Edition(now=int(time()), days=days)
    _write(output or refs, add(read_references(read_raw(refs)), newer, edition, overlap=overlap * DAY))


@cli.command(name="retire")
def retire_releases(
    refs: Refs,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Which releases.")],
    at: Annotated[
        datetime | None,
        typer.Option("--at", parser=parse_time, metavar="TIME", help="When; now unless given."),
    ] = None,
    after: Annotated[
        int | None, typer.Option("--after", min=0, metavar="DAYS", help="Or in how many days.")
    ] = None,
    days: Days = None,
    output: Output = None,
) -> None:
    """End releases: clients refuse them from then on, with `policy.retired`."""
    if at is not None and after is not None:
        raise typer.BadParameter("--at and --after both say when")
    now = int(time())
    end = int(at.timestamp()) if at is not None else now + (after or 0) * DAY
    edition = Edition(now=now, days=days)
    _write(output or refs, retire(read_references(read_raw(refs)), ids, edition, at=end))


@cli.command(name="revoke")
def revoke_releases(
    refs: Refs,
    ids: Annotated[list[str], typer.Argument(metavar="ID…", help="Which releases.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; every client that refuses it shows this.")],
    former: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="An older edition that has them still.")
    ] = None,
    days: Days = None,
    output: Output = None,
) -> None:
    """Refuse releases at once, also where a client's own policy names them, with `policy.revoked`."""
    gone = read_references(read_raw(former)).releases if former is not None else ()
    edition = Edition(now=int(time()), days=days)
    _write(output or refs, revoke(read_references(read_raw(refs)), ids, reason, edition, gone=gone))


@cli.command(name="sign")
def sign_references(
    refs: Values,
    key: Annotated[list[Path], typer.Option("--key", metavar="PEM", help="A private key, Ed25519 or P-256.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The envelope, kept or made.")
    ],
    previous: Previous = None,
) -> None:
    """Sign reference values, beside the other reviewers: a DSSE envelope, which clients name in their policy.

    Signatures of others over this edition stay. An edition that does not follow the one in FILE, or the previous one, is
    refused: its epoch must be higher, and what was revoked must be so still.
    """
    envelope = sign_edition(
        read_references(read_raw(refs)),
        [_signing_key(file) for file in key],
        now=int(time()),
        existing=read_raw(output) if output.exists() else b"",
        previous=read_raw(previous) if previous is not None else b"",
    )
    replace_file(output, envelope)
    count = len(parse_envelope(envelope)[1])
    typer.echo(f"{output}: {count} signature{'' if count == 1 else 's'}")


@cli.command(name="statement")
def write_statement(
    refs: Values,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The statement.")],
    previous: Previous = None,
) -> None:
    """Write the bytes that `sign` signs, for tools whose signatures are files of their own, such as minisign.

    The same is refused as by `sign`. Clients take the statement in place of an envelope where no one signs in one.
    """
    before = [read_raw(file) for file in (output, previous) if file is not None and file.exists()]
    replace_file(output, statement_of(read_references(read_raw(refs)), now=int(time()), before=before))
    typer.echo(f"{output}: to be signed, for example with `minisign -Sm {output}`")


@cli.command(name="sign-keyless")
def sign_as_identity(
    refs: Values,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The Sigstore bundle.")],
    previous: Previous = None,
    token: Annotated[
        Path | None,
        typer.Option(
            "--token", metavar="FILE", help="An OpenID Connect token; the workflow's own unless given."
        ),
    ] = None,
    instance: Annotated[
        Path | None,
        typer.Option("--instance", metavar="FILE", help="A Sigstore instance's client trust configuration."),
    ] = None,
) -> None:
    """Sign as an identity that Sigstore vouches for: what is signed, and by whom, stands in a public log for ever.

    The same is refused as by `sign`. The bundle is a file of its own, which clients name beside the reviewer's identity.
    """
    before = [read_raw(file) for file in (output, previous) if file is not None and file.exists()]
    statement = statement_of(read_references(read_raw(refs)), now=int(time()), before=before)
    bundle = sign_keyless(
        statement,
        token=None if token is None else read_raw(token).decode(errors="replace").strip(),
        instance=None if instance is None else read_raw(instance),
    )
    replace_file(output, bundle)
    typer.echo(f"{output}: signed")


@cli.command()
def show(
    refs: Annotated[Path, typer.Argument(metavar="REFS", help="Reference values, or an envelope with them.")],
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="FILE", help="A reviewer's public key: has it signed?"),
    ] = None,
    minisig: Annotated[
        list[Path] | None,
        typer.Option("--minisig", metavar="FILE", help="Where minisign's signatures are; again for more."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reference values as JSON.")] = False,
    entry: Annotated[
        str | None,
        typer.Option("--entry", metavar="ID", help="Print the bytes whose digest the signed statement has."),
    ] = None,
) -> None:
    """Say in words what is in reference values, and who of these reviewers has signed them."""
    data = read_raw(refs)
    references = read_references(data)
    if as_json:
        typer.echo(dump_references(references), nl=False)
    elif entry is not None:
        found = [r for r in json.loads(dump_references(references))["releases"] if r["id"] == entry]
        if not found:
            raise ImageError(f"no release {entry!r}")
        typer.echo(rfc8785.dumps(found[0]), nl=False)
    else:
        for line in (*_described(references), *_signed(data, key or [], minisig or [])):
            typer.echo(clean(line))


def _described(references: References) -> Iterator[str]:
    yield f"{references.name}, epoch {references.epoch}"
    yield f"issued {_time(references.issued)}, ends {_time(references.expires)}"
    for release in references.releases:
        yield f"accepted: {release.id}"
        yield from (f"  {line}" for line in _release(release))
    for revoked in references.revoked:
        yield f"revoked: {revoked.id}: {revoked.reason}"


def _release(release: Release) -> Iterator[str]:
    counts = {"tdx": release.tdx, "snp": release.snp, "vtpm": release.vtpm}
    yield "measurements: " + (", ".join(f"{len(v)} {k}" for k, v in counts.items() if v) or "none")
    yield f"{len(release.models)} models, {len(release.configs)} configurations"
    if release.until is not None:
        yield f"until {_time(release.until)}"
    if release.machines is not None:
        yield f"on {len(release.machines.chip_ids)} chips of AMD's and {len(release.machines.ppids)} machines of Intel's alone"
    if release.build is not None:
        yield f"build {release.build.id.hex()} of {release.build.source or 'an unnamed source'}"


def _signed(data: bytes, keys: list[Path], minisigs: list[Path]) -> Iterator[str]:
    """For each key whether it signed; nothing where no key was given, since a signature alone says nothing."""
    files = [read_raw(file) for file in minisigs]
    for file in keys:
        payload, signatures = parse_envelope(data)
        reviewer = Reviewer(name=str(file), key=read_raw(file).decode(errors="replace"))
        if (minisign := reviewer.minisign_key()) is not None:
            yield f"{file}: {_minisigned(minisign, files, payload)}"
        else:
            has = any(signed_by(reviewer.public_key(), signature, payload) for signature in signatures)
            yield f"{file}: {'has signed this' if has else 'has NOT signed this'}"


def _minisigned(key: MinisignKey, files: list[bytes], payload: bytes) -> str:
    why = "no signature given with --minisig"
    for data in files:
        try:
            return f"has signed this ({verify_minisign(data, key, payload)})"
        except AttestationError as exc:
            why = exc.detail
    return f"has NOT signed this ({why})"


def _signing_key(file: Path) -> SigningKey:
    try:
        return load_signing_key(read_raw(file))
    except ValueError:
        raise ImageError(f"{file} holds no unencrypted private key, Ed25519 or P-256, in PEM") from None


def _machines(chip_ids: list[str], ppids: list[str]) -> Machines:
    chips, machines = [parse_hex(text) for text in chip_ids], [parse_hex(text) for text in ppids]
    if any(len(chip) not in (8, 64) for chip in chips) or any(len(ppid) != 16 for ppid in machines):
        raise ImageError("a CHIP_ID has 64 bytes (8 on Turin) and a PPID has 16")
    return Machines(chip_ids=frozenset(chips), ppids=frozenset(machines))


def _write(file: Path, references: References) -> None:
    """The next edition, unsigned, and what is to be done with it. What could not be read again is not written."""
    content = dump_references(references)
    parse_references(content)
    replace_file(file, content)
    typer.echo(f"{file}: epoch {references.epoch}, to be signed: `enclave-server refs sign`")


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
