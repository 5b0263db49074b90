"""`enclave-server image measure`: computes the numbers, writes them, and shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Annotated

import typer

from attestation.errors import MalformedError
from attestation.measure import EventLog, parse_log
from attestation.references import References, dump_references, dump_statement, parse_references
from attestation.release import Expected, Release
from image.errors import ImageError
from image.measure.plan import Machine, left_out, measure, read_image
from image.measure.profiles import PROFILES, profile_named
from image.measure.registers import replay
from image.measure.shapes import SHAPES, shape_named
from image.measure.snp import CPU_TYPES

_DAY = 24 * 60 * 60
_SHOWN = 16  # characters of a digest in the table


def measure_image(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    out: Annotated[Path, typer.Argument(help="A folder made by `enclave-server image build`.")],
    shapes: Annotated[
        list[str],
        typer.Option("--shape", help=f"{', '.join(SHAPES)}, or like 8cpu-64gib-1gpu; again for more."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The reference values to write.")],
    profiles: Annotated[
        list[str] | None,
        typer.Option("--profile", help=f"VMM and firmware: {', '.join(PROFILES)}. All, unless given."),
    ] = None,
    tdx_firmware: Annotated[
        Path | None, typer.Option("--tdx-firmware", help="Firmware of the TDs: MRTD, RTMR0 to RTMR2.")
    ] = None,
    snp_firmware: Annotated[
        Path | None, typer.Option("--snp-firmware", help="Firmware of SEV-SNP guests: launch digests.")
    ] = None,
    cpu_types: Annotated[
        list[str] | None,
        typer.Option("--cpu-type", help=f"For SEV-SNP. Unless given: {', '.join(CPU_TYPES)}."),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--guest-features", metavar="HEX", help="SEV_FEATURES that the VMM sets; 0x1 unless given."
        ),
    ] = None,
    logs: Annotated[
        list[str] | None,
        typer.Option(
            "--ccel", metavar="SHAPE=FILE", help="A TD's event log, for what the host adds to RTMR0."
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Whose releases these are; clients' policies name it.")
    ] = "enclave",
    release: Annotated[
        str, typer.Option("--id", help="What to call this release; its build, unless given.")
    ] = "",
    days: Annotated[int, typer.Option("--days", min=1, help="How long the reference values last.")] = 90,
) -> None:
    """Compute what a boot will measure, from the image's files and its firmware; nothing is booted."""
    machine = Machine(
        shapes=tuple(shape_named(shape) for shape in dict.fromkeys(shapes)),
        profiles=tuple(profile_named(profile) for profile in dict.fromkeys(profiles or PROFILES)),
        tdx_firmware=tdx_firmware,
        snp_firmware=snp_firmware,
        cpu_types=tuple(dict.fromkeys(cpu_types or CPU_TYPES)),
        guest_features=tuple(dict.fromkeys(map(_features, features or ["0x1"]))),
        logs=dict(_log(item, shapes) for item in logs or ()),
    )
    found = measure(read_image(out), machine, release=release)
    now = int(time())
    references = References(name=name, epoch=1, issued=now, expires=now + days * _DAY, releases=(found,))
    content = dump_references(references)
    parse_references(content)  # what could not be read again is not written
    output.write_bytes(content)
    for line in table(found):
        typer.echo(line)
    typer.echo(f"\n{output}: release {found.id!r} of {name!r}, entry {entry_digest(references)}")


def table(release: Release) -> Iterator[str]:
    """The values, one line each, and what is not among them."""
    yield f"{'where':5}  {'profile':22}  {'shape':16}  {'register':12}  value"
    for expected in release.expected:
        for register, value in values(expected):
            where = f"{expected.platform:5}  {expected.profile:22}  {expected.shape:16}"
            yield f"{where}  {register:12}  {value}"
    missing = left_out(release)
    if missing:
        yield "\nnot predicted, and in no value above:"
    for item in missing:
        yield f"  {item.register:6} {item.reason}"


def values(expected: Expected) -> Iterator[tuple[str, str]]:
    """Registers and their values, shortened. One line for each launch digest."""
    if expected.platform == "snp":
        for event in expected.events:
            yield "MEASUREMENT", f"{_short(event.sha384)}  {event.what.removeprefix('launch digest: ')}"
        return
    algorithm = "sha384" if expected.platform == "tdx" else "sha256"
    missing = {item.register for item in expected.left_out}
    for event in expected.events:
        if event.register == "MRTD":
            yield "MRTD", f"{_short(event.sha384)}  {event.what.partition(', ')[2]}"
    for register, value in replay((e for e in expected.events if e.register != "MRTD"), algorithm).items():
        if register not in missing:
            yield register, _short(value)


def entry_digest(references: References) -> str:
    """What two who measured the same can compare: the digest of the release's entry, as the signed statement names it."""
    return str(json.loads(dump_statement(references))["subject"][0]["digest"]["sha256"])


def _features(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise ImageError(f"--guest-features {text!r} is no hexadecimal number") from None


def _log(item: str, shapes: list[str]) -> tuple[str, EventLog]:
    shape, _, path = item.partition("=")
    if shape not in shapes or not path:
        raise ImageError(f"--ccel {item!r} is not SHAPE=FILE with one of the shapes {', '.join(shapes)}")
    try:
        return shape, parse_log(Path(path).read_bytes())
    except (OSError, MalformedError) as exc:
        raise ImageError(f"cannot read the event log {path}: {exc}") from exc


def _short(value: bytes | None) -> str:
    return value.hex()[:_SHOWN] + "…" if value is not None else "unknown"
