"""`attested verify URL` and `attested evidence foreign FILE` for evidence as other providers publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console

from attestation._x509 import parse_certificate
from attestation.checks import Check
from attestation.collateral import AmdCollateral, IntelCollateral
from attestation.errors import AttestationError
from attestation.evidence import SnpEvidence
from attestation.fetch import Fetcher
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.roots import is_vendor
from client_sdk.amd_file import parse_amd
from client_sdk.commands.options import AsJson, At, EvidenceFile, JudgedBy, RootFiles
from client_sdk.exits import exit_code
from client_sdk.files import parse_hex, read_file, read_raw
from client_sdk.foreign.document import TITLES, Foreign, Seen
from client_sdk.foreign.fetch import OurOwn, Provider, ask, supply
from client_sdk.foreign.formats import recognise
from client_sdk.foreign.judge import judge_foreign, links
from client_sdk.judge import Judged, Terms, load_terms
from client_sdk.present import clean, result, show, walk, working

CollateralFile = Annotated[
    Path | None,
    typer.Option(
        "--collateral", metavar="FILE.json", help="Intel's or AMD's collateral, in place of asking for it."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Collateral from files; what is None is fetched, unless `offline`."""

    cpu: Path | None = None
    rims: Sequence[Path] = ()
    ocsp: Sequence[Path] = ()
    offline: bool = False

    def read_cpu(self, foreign: Foreign) -> IntelCollateral | AmdCollateral | None:
        if self.cpu is None:
            return None
        if isinstance(foreign.cpu, SnpEvidence):
            return parse_amd(read_raw(self.cpu))
        return IntelCollateral.parse(read_raw(self.cpu), Check.TDX_COLLATERAL_FORMAT)

    def read_gpus(self) -> NvidiaCollateral | None:
        if not self.rims and not self.ocsp:
            return None
        return NvidiaCollateral(rims=tuple(map(read_raw, self.rims)), ocsp=tuple(map(read_file, self.ocsp)))


def foreign(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    file: EvidenceFile,
    nonce: Annotated[
        bytes | None,
        typer.Option("--nonce", parser=parse_hex, metavar="HEX", help="The nonce that was asked with."),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option("--tls", metavar="CERT", help="The certificate at the end of the connection."),
    ] = None,
    collateral: CollateralFile = None,
    rim: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A reference manifest of NVIDIA's (SWID XML).")
    ] = None,
    ocsp: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An OCSP answer (DER).")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no vendor for collateral that is not given.")
    ] = False,
    at: At = None,
    root: RootFiles = None,
    policy: JudgedBy = None,
    as_json: AsJson = False,
) -> None:
    """A document in another provider's format: Tinfoil's, dstack's (Phala, NEAR), nitriding's, or an RA-TLS certificate.

    What the format proves is judged by the same checks as our own evidence; what it does not is said.
    """
    given = Given(cpu=collateral, rims=rim or (), ocsp=ocsp or (), offline=offline)
    try:
        terms = load_terms(policy, root or [], at or datetime.now(UTC))
        machines = recognise(read_raw(file))
        certificate = None if tls is None else _certificate(tls)
    except AttestationError as exc:
        _report_early(file.name, exc, as_json=as_json)
    seen = Seen(nonce=nonce, certificate=certificate)
    report(file.name, machines, judge_each(terms, machines, seen, given), notes(terms), as_json=as_json)


def verify_foreign(
    url: str, provider: Provider, policy: Path | None, collateral: Path | None, *, as_json: bool
) -> NoReturn:
    """`attested verify URL` where other providers' formats are asked for."""
    try:
        terms = load_terms(policy, [], datetime.now(UTC))
        with working(f"asking {url} for evidence"):
            published = ask(url, provider)
    except OurOwn as exc:
        raise typer.BadParameter(
            f"{url} is a gateway of attested inference: say with --policy what you accept"
        ) from exc
    except AttestationError as exc:
        _report_early(url, exc, as_json=as_json)
    with working("asking the vendors for collateral"):
        judged = judge_each(terms, published.machines, published.seen, Given(cpu=collateral))
    report(url, published.machines, judged, notes(terms), as_json=as_json)


def judge_each(
    terms: Terms, machines: Sequence[Foreign], seen: Seen, given: Given, fetcher: Fetcher | None = None
) -> list[Judged]:
    """One outcome for each machine of a document."""
    found = []
    with fetcher or Fetcher() as source:
        for machine in machines:
            try:
                cpu, gpus = given.read_cpu(machine), given.read_gpus()
                collateral = supply(machine, None if given.offline else source, cpu=cpu, gpus=gpus)
            except AttestationError as exc:
                found.append(Judged(error=exc, lines=walk(links(machine), exc)))
            else:
                found.append(judge_foreign(terms, machine, collateral, seen))
    return found


def _report_early(what: str, error: AttestationError, *, as_json: bool) -> NoReturn:
    """Nothing was there to be judged."""
    report(what, (), [Judged(error=error, lines=walk(links(None), error)[:1])], [], as_json=as_json)


def report(
    what: str, machines: Sequence[Foreign], judged: Sequence[Judged], said: Sequence[str], *, as_json: bool
) -> NoReturn:
    """Print every machine's outcome, and leave with the first one's exit code that is not acceptance."""
    error = next((one.error for one in judged if one.error is not None), None)
    if as_json:
        typer.echo(json.dumps({**result(error, None), "source": what, "machines": list(map(_json, judged))}))
        for note in said:
            typer.echo(f"note: {clean(note)}", err=True)
    else:
        console = Console(highlight=False)
        for number, one in enumerate(judged):
            lines = [] if not machines else _notes(machines[number], one)
            show(console, _title(what, machines, number), one.lines, one.error, [*lines, *said])
    raise typer.Exit(exit_code(error))


def notes(terms: Terms) -> list[str]:
    """What holds for all of a document's machines."""
    lines = [f"judged as of {terms.now:%Y-%m-%dT%H:%M:%SZ}"]
    if terms.policy_given:
        lines.append(
            "the policy's words on models, engine and configuration are about our statements, and were not judged"
        )
    else:
        lines.append("measurements were not judged: no policy was given (--policy)")
    return lines


def _title(what: str, machines: Sequence[Foreign], number: int) -> str:
    if not machines:
        return what
    of = f", machine {number + 1} of {len(machines)}" if len(machines) > 1 else ""
    return f"{what}: {TITLES[machines[number].format]}{of}"


def _notes(machine: Foreign, judged: Judged) -> list[str]:
    lines = [
        f"SIMULATED: the root {r.name!r} is no hardware vendor's; this proves nothing about hardware"
        for r in sorted(set(judged.roots), key=str)
        if not is_vendor(r)
    ]
    if judged.claims is not None:
        lines += [f"{name}: {value.hex()}" for name, value in machine.keys.items()]
    lines += [f"not covered: {line}" for line in machine.uncovered]
    return lines


def _json(judged: Judged) -> dict[str, object]:
    chain = [{"link": line.title, "state": str(line.state)} for line in judged.lines]
    return {**result(judged.error, judged.claims), "links": chain}


def _certificate(file: Path) -> bytes:
    return parse_certificate(read_raw(file), Check.EVIDENCE_FORMAT, file.name).public_bytes(Encoding.DER)
