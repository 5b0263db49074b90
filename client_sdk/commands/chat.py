"""`attested chat URL`: one question, its answer streamed and verified."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.parts import DISCLOSURE_HEADER
from attestation.tokens import REPLAY_HEADER
from client_sdk.commands.ending import leave, unsettled
from client_sdk.commands.options import AsJson, ChannelOption, PolicyFile, Url
from client_sdk.present import clean, clean_text, working
from client_sdk.transport import DEFAULT_CHANNEL, Trust

_NONE = {"verified": False}
LOG_SECONDS = 10.0  # that saving waits for the receipt's place in the log


def chat(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    url: Url,
    policy: PolicyFile,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Read from standard input unless given.")
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
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Draw from it, so that `attested replay` can do it again."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model; its answer is streamed, and verified at its end.

    The answer goes to standard output, what was proven of it to standard error. With --json there is nothing before the
    whole answer is proven.
    """
    text = prompt if prompt is not None else sys.stdin.read()
    if not text.strip():
        raise typer.BadParameter("there is no prompt: give it as an argument or on standard input")
    try:
        from client_sdk import openai as sdk  # noqa: PLC0415 - an extra, and half a second to load
    except ImportError:
        unsettled(
            "openai is not installed: pip install 'attested-inference[openai]'", as_json=as_json, also=_NONE
        )
    head = "NOT VERIFIED - nothing was asked"
    try:
        base = httpx.URL(url)
        base = base.copy_with(path="/v1") if base.path in {"", "/"} else base
        trust = Trust(policy)
        with working(f"verifying {url}"):
            trust.verify(str(base))
        head = "NOT VERIFIED - do not use this answer"
        with sdk.OpenAI(policy=trust, base_url=str(base), api_key=api_key, channel=channel) as client:
            name = model or client.models.list().data[0].id
            proven = _stream(client, name, text, save, seed, show=not as_json)
    except AttestationError as exc:
        leave(exc, as_json=as_json, head=head, also=_NONE)
    except (sdk.OpenAIError, httpx.InvalidURL, LookupError) as exc:
        unsettled(f"no answer: {exc}", as_json=as_json, also=_NONE)
    except OSError as exc:
        unsettled(f"not saved: {exc}", as_json=as_json, also=_NONE)
    if as_json:
        typer.echo(json.dumps({"verified": True, **asdict(proven)}))
        return
    simulated = ", in a SIMULATED TEE, which proves nothing about hardware" if proven.simulated else ""
    words = f"verified: receipt {proven.receipt} covers all {proven.bytes} bytes{simulated}"
    typer.echo(clean(words), err=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A whole answer, and what proves it."""

    answer: str
    receipt: str
    bytes: int
    statement: str
    simulated: bool


def _stream(
    client: Any, model: str, prompt: str, save: Path | None, seed: int | None, *, show: bool
) -> Proven:
    """Print the answer as it comes, if it is to be shown; what was proven at its end, which may be saved."""
    messages = [{"role": "user", "content": prompt}]
    headers = {DISCLOSURE_HEADER: "1"} if save else {}  # so that `attested disclose` can show parts of it
    body = {}
    if seed is not None:
        headers[REPLAY_HEADER], body["seed"] = "1", seed
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, extra_headers=headers, extra_body=body
    )
    answer = ""
    for chunk in stream:
        for choice in chunk.choices:
            answer += (part := choice.delta.content or "")
            if show:
                typer.echo(clean_text(part), nl=False)
    if show:
        typer.echo()
    attestation = stream.response.extensions["attestation"]
    if (
        attestation.receipt is None
    ):  # the stream ended without [DONE]: then openai read to its end, and it was refused
        raise UnavailableError(Check.RECEIPT_MISSING, "the answer was not read to its end")
    if save is not None:
        _save(attestation, save)
    return Proven(
        answer=answer,
        receipt=attestation.receipt.id,
        bytes=attestation.receipt.response.length,
        statement=attestation.verdict.statement_digest.hex(),
        simulated=attestation.verdict.simulated,
    )


def _save(attestation: Any, file: Path) -> None:
    """Write the bundle; with its place in the log, where the enclave keeps one and it is there in time."""
    logged = attestation.verdict.statement.keys.log_ed25519 is not None
    try:
        attestation.save(file, log_seconds=LOG_SECONDS if logged else None)
    except UnavailableError as exc:  # the answer holds, and is saved
        words = f"saved without its proof of the log: {exc}. Later: attested log prove {file} {attestation.origin}"
        typer.echo(clean(words), err=True)
