"""`attested evidence …`: raw evidence of one machine or GPU, judged from the command line, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attestation.ear import SigningKey, appraise, load_signing_key, make_ear, sign_ear
from attestation.errors import AttestationError, UnavailableError
from attestation.roots import is_vendor
from client_sdk.commands.options import AsJson, EvidenceFile
from client_sdk.exits import exit_code
from client_sdk.files import parse_hex, parse_time
from client_sdk.installed import installed
from client_sdk.judge import AmdFiles, Judged, Terms, judge_nitro, judge_snp, judge_tdx, load_terms
from client_sdk.judge_azure import AzureFiles, judge_azure
from client_sdk.judge_gpu import judge_nvidia, judge_token
from client_sdk.present import Line, State, clean, plain, result, show

app = typer.Typer(
    no_args_is_help=True, help="Judge raw evidence: a quote, report or document, and nothing of ours."
)

At = Annotated[
    datetime | None,
    typer.Option(
        "--at", parser=parse_time, metavar="TIME", help="RFC 3339 or Unix seconds; the present unless given."
    ),
]
RootFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--root", metavar="PEM", help="Trust this certificate's key alone, in place of the vendor's roots."
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy", metavar="FILE", help="A policy (TOML). Without it, measurements are not judged."
    ),
]
EarKey = Annotated[
    Path | None,
    typer.Option(
        "--ear", metavar="KEY.pem", help="Sign the outcome as an EAR with this Ed25519 or P-256 key."
    ),
]
EarFile = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the EAR goes.")]
Nonce = Annotated[
    bytes, typer.Option("--nonce", parser=parse_hex, metavar="HEX", help="The nonce that was asked with.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where an outcome goes."""

    as_json: bool
    ear: Path | None
    file: Path | None


@app.command()
def tdx(
    quote: EvidenceFile,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Intel's collateral, in dcap-qvl's layout.")
    ] = None,
    at: At = None,
    root: RootFiles = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """An Intel TDX quote."""
    out = Output(as_json=as_json, ear=ear, file=output)
    _run("tdx", "Intel TDX quote", at, root, policy, out, lambda t: judge_tdx(t, quote, collateral))


@app.command()
def snp(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    report: EvidenceFile,
    vek: Annotated[Path | None, typer.Option(metavar="CERT", help="The VCEK or VLEK certificate.")] = None,
    chain: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Its issuer (ASK or ASVK), then the ARK.")
    ] = None,
    crl: Annotated[Path | None, typer.Option(metavar="DER", help="AMD's revocation list.")] = None,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="All of these, from `attested collateral fetch`.")
    ] = None,
    at: At = None,
    root: RootFiles = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """An AMD SEV-SNP attestation report."""
    files = _amd_files(vek, chain, crl, collateral)
    out = Output(as_json=as_json, ear=ear, file=output)
    _run("snp", "AMD SEV-SNP report", at, root, policy, out, lambda t: judge_snp(t, report, files))


@app.command()
def nitro(
    document: EvidenceFile,
    at: At = None,
    root: RootFiles = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """An AWS Nitro attestation document."""
    out = Output(as_json=as_json, ear=ear, file=output)
    _run("nitro", "AWS Nitro document", at, root, policy, out, lambda t: judge_nitro(t, document))


@app.command()
def azure(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    file: EvidenceFile,
    nonce: Annotated[
        bytes | None,
        typer.Option("--nonce", parser=parse_hex, metavar="HEX", help="The nonce that was asked with."),
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Intel's or AMD's collateral, as fetched.")
    ] = None,
    vek: Annotated[
        Path | None, typer.Option(metavar="CERT", help="In place of the VCEK in the file.")
    ] = None,
    chain: Annotated[Path | None, typer.Option(metavar="PEM", help="Its issuer, then the ARK.")] = None,
    crl: Annotated[Path | None, typer.Option(metavar="DER", help="AMD's revocation list.")] = None,
    at: At = None,
    root: RootFiles = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """Evidence of an Azure confidential VM: a vTPM's quote with the hardware's report."""
    files = AzureFiles(fetched=collateral, amd=_amd_files(vek, chain, crl, collateral))
    out = Output(as_json=as_json, ear=ear, file=output)
    kind = "azure" if nonce is not None else "azure-without-nonce"
    _run(kind, "Azure confidential VM", at, root, policy, out, lambda t: judge_azure(t, file, nonce, files))


@app.command()
def nvidia(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    evidence: EvidenceFile,
    nonce: Nonce,
    rim: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A reference manifest (SWID XML).")
    ] = None,
    ocsp: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An OCSP answer (DER).")] = None,
    at: At = None,
    root: RootFiles = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """NVIDIA GPU evidence: NVIDIA's JSON list, or an evidence document of ours."""
    out = Output(as_json=as_json, ear=ear, file=output)
    judge = lambda t: judge_nvidia(t, evidence, nonce, rim or (), ocsp or ())  # noqa: E731
    _run("nvidia", "NVIDIA GPU evidence", at, root, policy, out, judge)


@app.command()
def nvidia_token(
    token: Path,
    jwks: Annotated[Path, typer.Option(metavar="FILE", help="The service's keys, which you trust.")],
    nonce: Nonce,
    at: At = None,
    as_json: AsJson = False,
    ear: EarKey = None,
    output: EarFile = None,
) -> None:
    """A token of NVIDIA's service, or of Intel Trust Authority with claims about a GPU."""
    out = Output(as_json=as_json, ear=ear, file=output)
    _run(
        "nvidia-token", "token about a GPU", at, None, None, out, lambda t: judge_token(t, token, jwks, nonce)
    )


def _amd_files(vek: Path | None, chain: Path | None, crl: Path | None, fetched: Path | None) -> AmdFiles:
    if fetched and (vek or chain or crl):
        raise typer.BadParameter("--collateral stands in place of --vek, --chain and --crl")
    return AmdFiles(vek=vek, chain=chain, crl=crl, fetched=fetched)


def _run(
    kind: str,
    what: str,
    at: datetime | None,
    roots: list[Path] | None,
    policy: Path | None,
    out: Output,
    judge: Callable[[Terms], Judged],
) -> None:
    """Judge, print, leave with the outcome's exit code."""
    key = _signing_key(out)
    now = at or datetime.now(UTC)
    notes = [f"judged as of {now:%Y-%m-%dT%H:%M:%SZ}"]
    try:
        terms = load_terms(policy, roots or [], now)
    except AttestationError as exc:
        judged = Judged(error=exc, lines=[Line("the policy and the roots can be read", _stopped(exc))])
    else:
        judged = judge(terms)
        notes += _notes(terms, judged, kind)
    measured = policy is not None
    if key is not None and out.file is not None:
        _write_ear(out.file, key, kind, judged, now, measured=measured)
    if out.as_json:
        typer.echo(json.dumps(result(judged.error, judged.claims)))
        for note in notes:
            typer.echo(f"note: {clean(note)}", err=True)
    else:
        show(Console(highlight=False), what, judged.lines, judged.error, notes)
    raise typer.Exit(exit_code(judged.error))


def _notes(terms: Terms, judged: Judged, kind: str) -> list[str]:
    """What the outcome does not say, in words."""
    notes = []
    if kind == "nvidia-token":
        notes.append(
            "a service's word; a policy takes it for the GPUs' own evidence only with allow_token = true"
        )
    elif not terms.policy_given:
        what = "which of NVIDIA's versions to accept was" if kind == "nvidia" else "measurements were"
        notes.append(f"{what} not judged: no policy was given (--policy)")
    if kind == "azure-without-nonce":
        notes.append("freshness was not judged: no nonce was given (--nonce)")
    strangers = {root for root in (*terms.foreign, *judged.roots) if not is_vendor(root)}
    notes += [
        f"the root {root.name!r} ({root.spki_sha256.hex()[:16]}…) is not a hardware vendor's: "
        "this proves nothing about hardware"
        for root in sorted(strangers, key=lambda r: r.spki_sha256)
    ]
    return notes


def _stopped(error: AttestationError) -> State:
    return State.UNDECIDED if isinstance(error, UnavailableError) else State.REFUSED


def _signing_key(out: Output) -> SigningKey | None:
    """The key to sign with; asked for wrongly, or not usable, it is a usage error before anything is judged."""
    if (out.ear is None) != (out.file is None):
        raise typer.BadParameter("--ear KEY.pem and -o FILE go together")
    if out.ear is None:
        return None
    try:
        return load_signing_key(out.ear.read_bytes())
    except (OSError, ValueError) as exc:
        raise typer.BadParameter(f"--ear {out.ear}: {exc}") from exc


def _write_ear(
    file: Path, key: SigningKey, kind: str, judged: Judged, now: datetime, *, measured: bool
) -> None:
    claims = plain(judged.claims) if judged.claims is not None else {}
    appraisal = appraise(judged.error, roots=judged.roots, claims=claims, measured=measured)
    ear = make_ear({kind.partition("-")[0]: appraisal}, build=installed(), issued=now, expires=judged.expires)
    try:
        file.write_text(sign_ear(ear, key))
    except OSError as exc:
        raise typer.BadParameter(f"-o {file}: {exc}") from exc
