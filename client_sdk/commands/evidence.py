"""`attested evidence …`: raw evidence of one machine or GPU, judged from the command line, for people and for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from attestation.ear import SigningKey, appraise, load_signing_key, make_ear, sign_ear
from attestation.errors import AttestationError, UnavailableError
from attestation.roots import is_vendor
from client_sdk.commands.foreign import foreign
from client_sdk.commands.options import AsJson, At, EvidenceFile, JudgedBy, RootFiles
from client_sdk.exits import exit_code
from client_sdk.files import parse_hex
from client_sdk.installed import installed
from client_sdk.judge import AmdFiles, Judged, Terms, judge_nitro, judge_snp, judge_tdx, load_terms
from client_sdk.judge_azure import AzureFiles, judge_azure
from client_sdk.judge_gpu import judge_nvidia, judge_token
from client_sdk.present import Line, State, clean, plain, result, show

app = typer.Typer(
    no_args_is_help=True, help="Judge raw evidence: a quote, report or document, and nothing of ours."
)

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
class Asked:
    """The options of every kind of evidence: by what it is judged, and where the outcome goes."""

    at: At = None
    root: RootFiles = None
    policy: JudgedBy = None
    as_json: AsJson = False
    ear: EarKey = None
    output: EarFile = None


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `function`, whose last parameter is of type `Asked`, with the options that this has in its place."""
    own = [p for p in signature(function, eval_str=True).parameters.values() if p.annotation is not Asked]
    shared = signature(Asked, eval_str=True).parameters.values()

    @wraps(function)
    def command(**given: Any) -> None:
        asked = Asked(**{option.name: given.pop(option.name) for option in shared})
        function(**given, asked=asked)

    everything = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in (*own, *shared)]
    command.__signature__ = Signature(everything)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in everything}
    app.command()(command)
    return command


@_command
def tdx(
    quote: EvidenceFile,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Intel's collateral, in dcap-qvl's layout.")
    ] = None,
    *,
    asked: Asked,
) -> None:
    """An Intel TDX quote."""
    _run("tdx", "Intel TDX quote", asked, lambda t: judge_tdx(t, quote, collateral))


@_command
def snp(
    report: EvidenceFile,
    vek: Annotated[Path | None, typer.Option(metavar="CERT", help="The VCEK or VLEK certificate.")] = None,
    chain: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Its issuer (ASK or ASVK), then the ARK.")
    ] = None,
    crl: Annotated[Path | None, typer.Option(metavar="DER", help="AMD's revocation list.")] = None,
    collateral: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="All of these, from `attested collateral fetch`.")
    ] = None,
    *,
    asked: Asked,
) -> None:
    """An AMD SEV-SNP attestation report."""
    files = _amd_files(vek, chain, crl, collateral)
    _run("snp", "AMD SEV-SNP report", asked, lambda t: judge_snp(t, report, files))


@_command
def nitro(
    document: EvidenceFile,
    *,
    asked: Asked,
) -> None:
    """An AWS Nitro attestation document."""
    _run("nitro", "AWS Nitro document", asked, lambda t: judge_nitro(t, document))


@_command
def azure(
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
    *,
    asked: Asked,
) -> None:
    """Evidence of an Azure confidential VM: a vTPM's quote with the hardware's report."""
    files = AzureFiles(fetched=collateral, amd=_amd_files(vek, chain, crl, collateral))
    kind = "azure" if nonce is not None else "azure-without-nonce"
    _run(kind, "Azure confidential VM", asked, lambda t: judge_azure(t, file, nonce, files))


@_command
def nvidia(
    evidence: EvidenceFile,
    nonce: Nonce,
    rim: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A reference manifest (SWID XML).")
    ] = None,
    ocsp: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An OCSP answer (DER).")] = None,
    *,
    asked: Asked,
) -> None:
    """NVIDIA GPU evidence: NVIDIA's JSON list, or an evidence document of ours."""
    judge = lambda t: judge_nvidia(t, evidence, nonce, rim or (), ocsp or ())  # noqa: E731
    _run("nvidia", "NVIDIA GPU evidence", asked, judge)


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
    asked = Asked(at=at, as_json=as_json, ear=ear, output=output)
    _run("nvidia-token", "token about a GPU", asked, lambda t: judge_token(t, token, jwks, nonce))


app.command()(foreign)


def _amd_files(vek: Path | None, chain: Path | None, crl: Path | None, fetched: Path | None) -> AmdFiles:
    if fetched and (vek or chain or crl):
        raise typer.BadParameter("--collateral stands in place of --vek, --chain and --crl")
    return AmdFiles(vek=vek, chain=chain, crl=crl, fetched=fetched)


def _run(kind: str, what: str, asked: Asked, judge: Callable[[Terms], Judged]) -> None:
    """Judge, print, leave with the outcome's exit code."""
    key = _signing_key(asked)
    now = asked.at or datetime.now(UTC)
    notes = [f"judged as of {now:%Y-%m-%dT%H:%M:%SZ}"]
    try:
        terms = load_terms(asked.policy, asked.root or [], now)
    except AttestationError as exc:
        judged = Judged(error=exc, lines=[Line("the policy and the roots can be read", _stopped(exc))])
    else:
        judged = judge(terms)
        notes += _notes(terms, judged, kind)
    measured = asked.policy is not None
    if key is not None and asked.output is not None:
        _write_ear(asked.output, key, kind, judged, now, measured=measured)
    if asked.as_json:
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


def _signing_key(asked: Asked) -> SigningKey | None:
    """The key to sign with; asked for wrongly, or not usable, it is a usage error before anything is judged."""
    if (asked.ear is None) != (asked.output is None):
        raise typer.BadParameter("--ear KEY.pem and -o FILE go together")
    if asked.ear is None:
        return None
    try:
        return load_signing_key(asked.ear.read_bytes())
    except (OSError, ValueError) as exc:
        raise typer.BadParameter(f"--ear {asked.ear}: {exc}") from exc


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
