"""`attested collateral fetch EVIDENCE -o FILE`: what a vendor publishes for one piece of evidence, into a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from attestation.collateral import AmdCollateral
from attestation.errors import AttestationError
from attestation.evidence import CpuEvidence, SnpEvidence, TdxEvidence, parse_evidence
from attestation.fetch import Fetcher, Sources
from attestation.snp.report import REPORT_BYTES
from attestation.vtpm import AzureEvidence
from client_sdk.amd_file import dump_amd
from client_sdk.commands.ending import leave, not_written
from client_sdk.commands.options import AsJson, EvidenceFile
from client_sdk.files import read_file
from client_sdk.present import working

app = typer.Typer(no_args_is_help=True, help="Get what vendors publish beside evidence.")


@app.callback()
def _group() -> None:
    """A command of its own keeps its name although it is the only one."""


@app.command()
def fetch(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    evidence: EvidenceFile,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where the collateral goes.")
    ],
    pccs: Annotated[str | None, typer.Option(metavar="URL", help="Ask this PCCS in place of Intel.")] = None,
    kds: Annotated[str | None, typer.Option(metavar="URL", help="Ask this mirror in place of AMD.")] = None,
    nvidia: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Ask this mirror in place of NVIDIA: at /v1/rim and /ocsp."),
    ] = None,
    vek: Annotated[
        Path | None, typer.Option(metavar="CERT", help="The certificate that came with a report.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Remember answers in this folder, those for a document's GPUs too."),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Use remembered answers only; open no socket.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Collateral for a TDX quote, an SEV-SNP report, or the evidence document that holds one. Judges nothing."""
    sources = Sources.pccs(pccs) if pccs else Sources()
    sources = replace(sources, amd=kds.rstrip("/")) if kds else sources
    if nvidia:
        base = nvidia.rstrip("/")
        sources = replace(sources, nvidia_rim=f"{base}/v1/rim", nvidia_ocsp=f"{base}/ocsp")
    fetcher = Fetcher(sources=sources, cache=cache, offline=offline)
    try:
        with working("asking the vendor"):
            text = _fetch(
                fetcher, read_file(evidence), read_file(vek) if vek else None, keep=cache is not None
            )
    except AttestationError as exc:
        leave(exc, as_json=as_json)
    try:
        output.write_bytes(text)
    except OSError as exc:
        not_written(output, exc, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "bytes": len(text), "verified": False}))
        return
    typer.echo(f"{output}: {len(text)} bytes of collateral, not verified")


def _fetch(fetcher: Fetcher, data: bytes, vek: bytes | None, *, keep: bool) -> bytes:
    cpu: CpuEvidence
    if data.lstrip()[:1] == b"{":
        document = parse_evidence(data)
        cpu = document.cpu
        if document.gpu and keep:
            fetcher.nvidia(document.gpu)
    else:
        cpu = SnpEvidence(data) if len(data) == REPORT_BYTES else TdxEvidence(data)
    if isinstance(cpu, SnpEvidence):
        return dump_amd(fetcher.amd(cpu.report, vek=vek))
    if isinstance(cpu, AzureEvidence):
        fetched = fetcher.azure(cpu)
        return dump_amd(fetched) if isinstance(fetched, AmdCollateral) else fetched.to_json()
    return fetcher.intel(cpu.quote).to_json()
