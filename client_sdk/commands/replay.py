"""`attested replay BUNDLE`: a saved answer run again elsewhere, and compared token by token."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation.audit import Auditor
from attestation.bundle import MAX_BUNDLE_BYTES
from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.policy import Policy
from client_sdk.audit_work import read_bundle
from client_sdk.commands.options import AsJson, ChannelOption, PolicyFile
from client_sdk.exits import exit_code
from client_sdk.present import clean, failure, reasons, working
from client_sdk.replay.comparing import DivergedError, Method, Recorded, Replayed, read_recorded
from client_sdk.replay.comparing import replay as compare
from client_sdk.replay.engine import AttestedEngine, UnattestedEngine
from client_sdk.replay.terms import Terms, terms_of
from client_sdk.sealing import Channel
from client_sdk.terms import load_policy
from client_sdk.transport import DEFAULT_CHANNEL

_FILE = {"metavar": "FILE", "exists": True, "dir_okay": False}


def replay(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="An answer that was saved; see docs/replay.md.")
    ],
    policy: PolicyFile,
    engine: Annotated[
        str,
        typer.Option("--engine", metavar="URL", help="Where to run it again: a gateway, https://host:port."),
    ],
    request: Annotated[
        Path | None, typer.Option("--request", **_FILE, help="The request's body, where the bundle has none.")
    ] = None,
    response: Annotated[
        Path | None, typer.Option("--response", **_FILE, help="The answer's body, where the bundle has none.")
    ] = None,
    exchange: Annotated[int, typer.Option("--exchange", min=0, help="Which of the bundle's exchanges.")] = 0,
    method: Annotated[
        Method, typer.Option("--method", help="Run all of it again, or read it once ('prefill').")
    ] = Method.RERUN,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", min=0, help="Of log-probabilities; by the engine's dtype unless given."),
    ] = None,
    unattested_engine: Annotated[
        bool,
        typer.Option(
            "--unattested-engine",
            help="URL is vLLM itself, also http+unix:///socket; nobody proves what it serves.",
        ),
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="OPENAI_API_KEY", metavar="KEY", help="For gateways that ask for one."),
    ] = None,
    channel: ChannelOption = DEFAULT_CHANNEL,
    as_json: AsJson = False,
) -> None:
    """Run a saved answer again on another node with the same model and engine, and compare it token by token."""
    recorded, found, error = None, None, None
    terms = terms_of((), tolerance)
    try:
        accepted = load_policy(policy)
        recorded = _recorded(bundle, exchange, request, response, accepted)
        terms = terms_of(recorded.statement.engine.flags, tolerance)
        with (
            working(f"running it again at {engine}"),
            _engine(engine, recorded, accepted, channel, api_key, unattested=unattested_engine) as other,
        ):
            found = compare(recorded, other, terms, method)
    except AttestationError as exc:
        error = exc
    verdict = _verdict(found, error)
    if as_json:
        typer.echo(json.dumps(_json(verdict, recorded, found, error, terms, attested=not unattested_engine)))
    else:
        for line in _words(verdict, engine, recorded, found, error, attested=not unattested_engine):
            typer.echo(clean(line))
    raise typer.Exit(exit_code(error))


def _recorded(
    bundle: Path, number: int, request: Path | None, response: Path | None, policy: Policy
) -> Recorded:
    """The audited exchange, as of its receipt's time."""
    saved = read_bundle(bundle)
    if number >= len(saved.exchanges):
        raise typer.BadParameter(f"{bundle} has {len(saved.exchanges)} exchanges, the first is 0")
    exchange = saved.exchanges[number]
    if request is not None:
        exchange = replace(exchange, request=_read(request))
    if response is not None:
        exchange = replace(exchange, response=_read(response))
    auditor = Auditor(policy)
    receipt = auditor.audit(saved, exchange).receipt
    verdict = auditor.verdict(saved, datetime.fromtimestamp(receipt.time, UTC))
    return read_recorded(receipt, exchange, verdict.statement)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BUNDLE_BYTES)
    except OSError as exc:
        raise UnavailableError(Check.REPLAY_REQUEST, f"{path}: {exc.strerror or 'cannot be read'}") from exc


def _engine(
    url: str, recorded: Recorded, policy: Policy, channel: Channel, api_key: str | None, *, unattested: bool
) -> AttestedEngine | UnattestedEngine:
    if unattested:
        return UnattestedEngine(url, recorded.statement, api_key=api_key)
    return AttestedEngine(url, recorded.statement, policy, channel=channel, api_key=api_key)


def _verdict(found: Replayed | None, error: AttestationError | None) -> str:
    if found is not None:
        return "within tolerance" if found.differing else "equal"
    if isinstance(error, DivergedError):
        return "diverged"
    return "not replayable" if isinstance(error, UnavailableError) else "refused"


def _json(
    verdict: str,
    recorded: Recorded | None,
    found: Replayed | None,
    error: AttestationError | None,
    terms: Terms,
    *,
    attested: bool,
) -> dict[str, Any]:
    """The one object that `--json` prints."""
    parting = None
    if isinstance(error, DivergedError):
        parting = {
            "where": error.where,
            "choice": error.choice,
            "position": error.position,
            "recorded": asdict(error.recorded),
            "engine": asdict(error.engine),
        }
    return {
        **failure(error),
        "verdict": verdict.replace(" ", "_"),
        "divergence": parting,
        "compared": None if found is None else asdict(found),
        "receipt": None if recorded is None else recorded.receipt.id,
        "model": None if recorded is None else recorded.statement.model.digest.hex(),
        "dtype": terms.dtype,
        "tolerance": terms.tolerance,
        "engine_attested": attested,
    }


def _words(
    verdict: str,
    url: str,
    recorded: Recorded | None,
    found: Replayed | None,
    error: AttestationError | None,
    *,
    attested: bool,
) -> list[str]:
    lines = [verdict.upper()]
    if found is not None and recorded is not None:
        how = "run again" if found.method is Method.RERUN else "read once"
        lines[0] += f"  {found.tokens} tokens of {len(recorded.choices)} choice(s), {how} at {url}"
        lines.append(f"receipt {recorded.receipt.id}, model {recorded.statement.model.digest.hex()[:16]}…")
        if found.differing:
            lines.append(
                f"{found.differing} token(s) were near-ties, within {found.tolerance} of the likeliest"
            )
        if found.worst:
            lines.append(f"log-probabilities are at most {found.worst:.2g} apart")
    lines += reasons(error)
    if not attested:
        lines.append("note: UNATTESTED: nobody proves what the engine at that address serves")
    return lines
