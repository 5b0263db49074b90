"""`enclave-server doctor` and `enclave-server collect`: this machine, before anybody else looks at it."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from attestation.collect.azure import collect_azure
from attestation.collect.nitro import collect_nitro
from attestation.collect.sev_guest import collect_sev_guest
from attestation.collect.tsm import TSM, Provider, collect_tsm
from attestation.collect_nvidia import collect_gpus
from attestation.vtpm import dump_evidence
from enclave_server.commands.options import Config
from enclave_server.doctor import Doctor, Finding, Health
from enclave_server.settings import Settings

_SIGNS = {Health.OK: "ok", Health.WARNING: "warning", Health.FAILED: "FAILED", Health.NOT_REACHED: "-"}


class Kind(StrEnum):
    """What can be collected."""

    TDX = "tdx"
    SNP = "snp"
    AZURE = "azure"
    NITRO = "nitro"
    GPUS = "gpus"


def doctor(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Look at this machine: TEE, GPUs, versions, clock, collateral, disk. Exit status 1 when something failed."""
    content = config.read_bytes() if config is not None else None
    findings = list(Doctor(Settings.load(content), content, Settings.origins(content)).examine())
    if as_json:
        typer.echo(json.dumps({"findings": [asdict(finding) for finding in findings]}))
    else:
        typer.echo("\n".join(_line(finding) for finding in findings))
    if any(finding.health is Health.FAILED for finding in findings):
        raise typer.Exit(1)


def collect(
    kind: Kind,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="Where the evidence goes.")],
    nonce: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="64 bytes for tdx and snp, 32 for the others; else random."),
    ] = None,
) -> None:
    """Raw evidence of this machine, for `attested evidence` and `attested inspect`. Judges nothing."""
    size = 64 if kind in (Kind.TDX, Kind.SNP) else 32
    asked = bytes.fromhex(nonce) if nonce is not None else secrets.token_bytes(size)
    if len(asked) != size:
        raise ValueError(f"--nonce has {size} bytes in hex for {kind}, not {len(asked)}")
    output.write_bytes(_collect(kind, asked))
    typer.echo(f"{output}: evidence about {asked.hex()}, not verified")


def _collect(kind: Kind, asked: bytes) -> bytes:
    match kind:
        case Kind.TDX:
            return collect_tsm(Provider.TDX, asked).outblob
        case Kind.SNP if TSM.is_dir():
            return collect_tsm(Provider.SNP, asked).outblob
        case Kind.SNP:
            return collect_sev_guest(asked).outblob
        case Kind.AZURE:
            return dump_evidence(collect_azure(asked))
        case Kind.NITRO:
            return collect_nitro(nonce=asked)
        case Kind.GPUS:
            return collect_gpus(asked)


def _line(finding: Finding) -> str:
    line = f"{_SIGNS[finding.health]:8} {finding.step}: {finding.found}".rstrip(": ")
    return f"{line}\n         → {finding.advice}" if finding.advice else line
