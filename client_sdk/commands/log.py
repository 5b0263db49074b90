"""`attested log …`: whether a log of receipts only grew since the last visit; and proofs for what was saved."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from attestation._json import parse_json_object
from attestation.binding import parse_statement
from attestation.bundle import dump_bundle
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.evidence import parse_evidence
from attestation.tlog import VerifierKey, log_key, parse_verifier_key
from client_sdk.audit_work import read_bundle
from client_sdk.commands.ending import leave
from client_sdk.commands.options import AsJson, Url
from client_sdk.exits import exit_code
from client_sdk.files import one_at_a_time, replace_file
from client_sdk.kept import fetch_evidence
from client_sdk.log_client import LogClient, Visit, prove_bundle, visit
from client_sdk.present import clean, failure, reasons, working
from client_sdk.session import Session
from client_sdk.terms import load_policy
from client_sdk.transport import check_url

app = typer.Typer(
    no_args_is_help=True, help="Logs of receipts: see that they only grow, and prove what is in them."
)

MAX_STATE_BYTES = 16 * 1024 * 1024

Wait = Annotated[
    float, typer.Option("--wait", min=0, metavar="SECONDS", help="For receipts that are not logged yet.")
]


@app.command()
def check(
    url: Url,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="What you accept; the log's key is the enclave's."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="KEY", help="The log's key, <name>+<id>+<base64>; URL is then the log's own."
        ),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", metavar="KEY", help="Must have cosigned; may be repeated."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", metavar="FILE", help="Where the last visit is remembered.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """See that a log is signed, and that it continues what was seen at the last visit; then remember this one."""
    if (policy is None) == (key is None):
        raise typer.BadParameter(
            "say whose log it is: either --policy, for a gateway's, or --key, for any other"
        )
    file, found, error = state or _state_file(), None, None
    try:
        witnesses = [parse_verifier_key(text) for text in witness or []]
        if key is not None:
            expected, client = parse_verifier_key(key), LogClient(url)
        else:
            with working(f"verifying {url}"):
                expected, client = _key_of(url, policy), LogClient.of_gateway(url)
        with (
            one_at_a_time(file),
            client,
            working(f"reading the log of {url}"),
        ):  # or the older of two visits might be the one that is remembered
            known = _read_state(file)
            fetch = client.fetch_of if key is None else lambda _, path: client.fetch(path)
            found = visit(fetch, expected, known[url].encode() if url in known else None, witnesses)
            _write_state(file, {**known, url: found.note.decode()})
    except AttestationError as exc:
        error = exc
    except OSError as exc:
        found, error = None, UnavailableError(Check.LOG_FORMAT, f"{file}: {exc.strerror or exc}")
    typer.echo(
        json.dumps(_summary(url, found, error))
        if as_json
        else "\n".join(map(clean, _words(url, found, error)))
    )
    raise typer.Exit(exit_code(error))


@app.command()
def prove(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle, saved earlier.")],
    url: Url,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Put proofs that its receipts are logged into a saved bundle. `attested audit` verifies them, and all else."""
    try:
        bundle = read_bundle(file)
        statement = parse_statement(parse_evidence(bundle.evidence).statement)
        with LogClient.of_gateway(url) as client, working(f"reading the log of {url}"):
            proven = prove_bundle(client, bundle, statement, wait)
        _replace(file, dump_bundle(proven))
    except AttestationError as error:
        leave(error, as_json=as_json, head="NOT PROVEN")
    if as_json:
        typer.echo(json.dumps({"file": str(file), "proven": len(proven.exchanges)}))
    else:
        count = len(proven.exchanges)
        typer.echo(f"proven: {count} receipt{'' if count == 1 else 's'} in the log")


def _key_of(url: str, policy: Path | None) -> VerifierKey:
    """The key of the log of the enclave at this URL, once that was verified."""
    session = Session(load_policy(policy or ""))
    try:
        origin = check_url(httpx.URL(url))
    except httpx.InvalidURL as exc:
        raise UnavailableError(Check.EVIDENCE_FETCH, f"{url}: {exc}") from exc
    found = fetch_evidence(httpx, origin, {}, session.begin())
    verdict = session.accept(found.document, found.nonce, datetime.now(UTC), found.date)
    return log_key(verdict.statement)


def _summary(url: str, found: Visit | None, error: AttestationError | None) -> dict[str, Any]:
    """The one object that `--json` prints."""
    head = found and {
        "origin": found.checkpoint.origin,
        "size": found.checkpoint.size,
        "root": found.checkpoint.root.hex(),
        "seen_size": found.before.size if found.before else None,
        "boots": found.boots,
    }
    return {
        **failure(error),
        "url": url,
        "log": head,
    }


def _words(url: str, found: Visit | None, error: AttestationError | None) -> list[str]:
    if error is not None or found is None:
        undecided = isinstance(error, UnavailableError)
        return [f"{'COULD NOT DECIDE' if undecided else 'REFUSED'}  {url}", *reasons(error)]
    lines = [f"ACCEPTED  {url}", f"  log {found.checkpoint.origin}, {found.checkpoint.size} entries"]
    if found.before is None:
        return [*lines, "  first visit: there is nothing to compare with; remembered for the next one"]
    if found.boots:
        lines.append(
            f"  {found.boots} log(s) begun since the last visit, each after the end of the one before"
        )
    return [*lines, f"  continues what was seen at the last visit ({found.before.size} entries)"]


def _state_file() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "attested" / "logs.json"


def _read_state(file: Path) -> dict[str, str]:
    """The checkpoint that was seen last, by URL. A file that cannot be read is an error: without it a second history goes unseen."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise UnavailableError(Check.LOG_FORMAT, f"{file}: {exc.strerror}") from exc
    raw = parse_json_object(data, Check.LOG_FORMAT, str(file), limit=MAX_STATE_BYTES)
    if not all(isinstance(value, str) for value in raw.values()):
        raise MalformedError(Check.LOG_FORMAT, f"{file} has not a checkpoint for each URL")
    return raw


def _write_state(file: Path, state: dict[str, str]) -> None:
    _replace(file, json.dumps(state, indent=1, ensure_ascii=False).encode() + b"\n")


def _replace(file: Path, data: bytes) -> None:
    """Never half of it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, data)
    except OSError as exc:
        raise UnavailableError(Check.LOG_FORMAT, f"{file}: {exc.strerror}") from exc
