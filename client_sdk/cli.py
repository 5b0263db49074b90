"""`attested`: the client on the command line. Verify an enclave, talk to one, judge raw evidence.

Exit codes: 0 accepted, 2 malformed, 3 not authentic, 4 refused by the policy, 5 could not decide, 64 wrong usage.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.roots import is_vendor
from attestation.tdx.verify import TdxClaims
from client_sdk import collateral_cli, evidence_cli, policy_cli
from client_sdk.audit_cli import audit
from client_sdk.chains import DOCUMENT
from client_sdk.exits import Commands, ExitCode, exit_code
from client_sdk.inspect_cli import inspect
from client_sdk.present import Line, State, clean, reasons, result, show, walk
from client_sdk.sealing import Channel
from client_sdk.transport import DEFAULT_CHANNEL, attested_transport, load_policy

if TYPE_CHECKING:
    from attestation.policy import Policy
    from attestation.verdict import Verdict

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Verify an enclave before you talk to it, and every answer after.",
)
app.add_typer(evidence_cli.app, name="evidence")
app.add_typer(collateral_cli.app, name="collateral")
app.add_typer(policy_cli.app, name="policy")
app.command()(inspect)
app.command()(audit)

CHANNEL = {
    Channel.SEALED_AND_PINNED: "the connection ends at the attested TLS key",
    Channel.PINNED: "the connection ends at the attested TLS key",
    Channel.SEALED: "what is sealed to the attested key is opened",
}
_OF_THE_CHANNEL = (Check.CHANNEL_TLS_KEY, "sealed.", "receipt.")

Url = Annotated[str, typer.Argument(metavar="URL", help="Where the gateway answers: https://host:port")]
PolicyFile = Annotated[
    Path, typer.Option("--policy", metavar="FILE", help="What you accept (TOML); see docs/policy.md.")
]
ChannelOption = Annotated[
    Channel,
    typer.Option(
        "--channel", help="What protects requests; 'sealed' where a balancer ends TLS before the enclave."
    ),
]


@app.command()
def verify(
    url: Url,
    policy: PolicyFile,
    channel: ChannelOption = DEFAULT_CHANNEL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ask an enclave for evidence and judge it; send it nothing else."""
    verdict, error, notes = None, None, []
    try:
        accepted = load_policy(policy)
        notes = _foreign(accepted)
        verdict = _ask(url, accepted, channel)
    except AttestationError as exc:
        error = exc
    lines = _lines(error, CHANNEL[channel], gpus=verdict is not None and bool(verdict.gpus))
    if as_json:
        links = [{"link": line.title, "state": str(line.state)} for line in lines]
        found = {"url": url, "links": links, "simulated": None if verdict is None else verdict.simulated}
        typer.echo(json.dumps({**result(error, verdict), **found}))
    else:
        notes += [] if verdict is None else _proven(verdict)
        show(Console(highlight=False), url, lines, error, notes)
    raise typer.Exit(exit_code(error))


@app.command()
def chat(
    url: Url,
    policy: PolicyFile,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Read from standard input unless given.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The first that the server lists, unless given.")
    ] = None,
    api_key: Annotated[
        str, typer.Option(envvar="OPENAI_API_KEY", metavar="KEY", help="For gateways that ask for one.")
    ] = "none",
    channel: ChannelOption = DEFAULT_CHANNEL,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Write evidence, receipt and bytes, for `attested audit`."
        ),
    ] = None,
) -> None:
    """Ask a model; its answer is streamed, and verified at its end."""
    text = prompt if prompt is not None else sys.stdin.read()
    try:
        from client_sdk import openai as sdk  # noqa: PLC0415 - an extra, and half a second to load
    except ImportError:
        _leave("openai is not installed: pip install 'attested-inference[openai]'", ExitCode.UNDECIDED)
    try:
        base = httpx.URL(url)
        base = base.copy_with(path="/v1") if base.path in {"", "/"} else base
        with sdk.OpenAI(policy=policy, base_url=str(base), api_key=api_key, channel=channel) as client:
            name = model or client.models.list().data[0].id
            receipt = _stream(client, name, text, save)
    except AttestationError as exc:
        _leave("\n".join(["NOT VERIFIED - do not use this answer", *reasons(exc)]), exit_code(exc))
    except (sdk.OpenAIError, httpx.InvalidURL, LookupError) as exc:
        _leave(f"no answer: {exc}", ExitCode.UNDECIDED)
    except OSError as exc:
        _leave(f"not saved: {exc}", ExitCode.UNDECIDED)
    typer.echo(f"verified: {receipt}", err=True)


def _stream(client: Any, model: str, prompt: str, save: Path | None) -> str:
    """Print the answer as it comes; in words, what was proven at its end, which may be saved."""
    messages = [{"role": "user", "content": prompt}]
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    for chunk in stream:
        for choice in chunk.choices:
            typer.echo(clean(choice.delta.content or ""), nl=False)
    typer.echo()
    attestation = stream.response.extensions["attestation"]
    if (
        attestation.receipt is None
    ):  # the stream ended without [DONE]: then openai read to its end, and it was refused
        raise UnavailableError(Check.RECEIPT_MISSING, "the answer was not read to its end")
    if save is not None:
        attestation.save(save)
    simulated = (
        ", in a SIMULATED TEE, which proves nothing about hardware" if attestation.verdict.simulated else ""
    )
    return (
        f"receipt {attestation.receipt.id} covers all {attestation.receipt.response.length} bytes{simulated}"
    )


def _ask(url: str, policy: Policy, channel: Channel) -> Verdict:
    """The verdict on what answers at `url`, over the channel that a request would take."""
    path = "/healthz" if channel.pins else "/v1/models"  # of the two, only the latter can be sealed
    try:
        where = httpx.URL(url).copy_with(path=path, query=None, fragment=None)
        with httpx.Client(transport=attested_transport(policy, channel=channel)) as client:
            verdict: Verdict = client.get(where).extensions["attestation"].verdict
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        raise UnavailableError(Check.EVIDENCE_FETCH, f"{url}: {type(exc).__name__}: {exc}") from exc
    return verdict


def _lines(error: AttestationError | None, channel: str, *, gpus: bool) -> list[Line]:
    """The chain link by link; the last one is the channel that a request would take."""
    # without GPUs, and where a refusal leaves open whether there are any, nothing of them has passed
    skipped = () if gpus else [link.title for link in DOCUMENT if link.covers(Check.GPU_CHAIN)]
    if error is not None and error.check.startswith(_OF_THE_CHANNEL):  # everything before it held
        state = State.UNDECIDED if isinstance(error, UnavailableError) else State.REFUSED
        return [*walk(DOCUMENT, None, skipped=skipped), Line(channel, state)]
    lines = walk(DOCUMENT, error, skipped=skipped)
    return [*lines, Line(channel, State.NOT_REACHED if error else State.PASSED)]


def _proven(verdict: Verdict) -> list[str]:
    """What was found, in a few calm lines."""
    cpu, statement = verdict.cpu, verdict.statement
    if isinstance(cpu, TdxClaims):
        machine = f"Intel TDX, TCB {cpu.tcb_status}"
    else:
        machine = f"AMD SEV-SNP on {cpu.product_name}"
    gpus = ", ".join(f"{g.model} (driver {g.driver})" for g in verdict.gpus if not g.switch) or "none"
    return [
        f"machine: {machine}, vouched for by {cpu.root.name!r}",
        f"GPUs: {gpus}",
        f"model: {', '.join(statement.model.names)}, digest {statement.model.digest.hex()[:16]}…",
        f"engine: {statement.engine.name} {statement.engine.version}",
        f"to be verified again after {verdict.valid_until:%Y-%m-%dT%H:%M:%SZ}",
    ]


def _foreign(policy: Policy) -> list[str]:
    """Roots of the policy that are no vendor's."""
    roots = policy.roots
    groups = (roots.intel, roots.amd, roots.nvidia_device, roots.nvidia_rim)
    return [
        f"SIMULATED: the policy trusts {root.name!r}, which is no hardware vendor's; this proves nothing about hardware"
        for root in sorted({root for group in groups for root in group if not is_vendor(root)}, key=str)
    ]


def _leave(message: str, code: ExitCode) -> NoReturn:
    typer.echo(clean(message), err=True)
    raise typer.Exit(code)


def main() -> None:
    """The console script."""
    app()
