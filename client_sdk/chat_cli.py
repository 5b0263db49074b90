"""`attested chat URL`: one question, its answer streamed and verified."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer

from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.parts import DISCLOSURE_HEADER
from attestation.tokens import REPLAY_HEADER
from client_sdk.exits import ExitCode, exit_code
from client_sdk.options import ChannelOption, PolicyFile, Url
from client_sdk.present import clean, reasons
from client_sdk.transport import DEFAULT_CHANNEL

LOG_SECONDS = 10.0  # that saving waits for the receipt's place in the log


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
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", help="Draw from it, so that `attested replay` can do it again."),
    ] = None,
) -> None:
    """Ask a model; its answer is streamed, and verified at its end.

    The answer goes to standard output, what was proven of it to standard error.
    """
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
            receipt = _stream(client, name, text, save, seed)
    except AttestationError as exc:
        _leave("\n".join(["NOT VERIFIED - do not use this answer", *reasons(exc)]), exit_code(exc))
    except (sdk.OpenAIError, httpx.InvalidURL, LookupError) as exc:
        _leave(f"no answer: {exc}", ExitCode.UNDECIDED)
    except OSError as exc:
        _leave(f"not saved: {exc}", ExitCode.UNDECIDED)
    typer.echo(f"verified: {receipt}", err=True)


def _stream(client: Any, model: str, prompt: str, save: Path | None, seed: int | None) -> str:
    """Print the answer as it comes; in words, what was proven at its end, which may be saved."""
    messages = [{"role": "user", "content": prompt}]
    headers = {DISCLOSURE_HEADER: "1"} if save else {}  # so that `attested disclose` can show parts of it
    body = {}
    if seed is not None:
        headers[REPLAY_HEADER], body["seed"] = "1", seed
    stream = client.chat.completions.create(
        model=model, messages=messages, stream=True, extra_headers=headers, extra_body=body
    )
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
        _save(attestation, save)
    simulated = (
        ", in a SIMULATED TEE, which proves nothing about hardware" if attestation.verdict.simulated else ""
    )
    return (
        f"receipt {attestation.receipt.id} covers all {attestation.receipt.response.length} bytes{simulated}"
    )


def _save(attestation: Any, file: Path) -> None:
    """Write the bundle; with its place in the log, where the enclave keeps one and it is there in time."""
    logged = attestation.verdict.statement.keys.log_ed25519 is not None
    try:
        attestation.save(file, log_seconds=LOG_SECONDS if logged else None)
    except UnavailableError as exc:  # the answer holds, and is saved
        words = f"saved without its proof of the log: {exc}. Later: attested log prove {file} {attestation.origin}"
        typer.echo(clean(words), err=True)


def _leave(message: str, code: ExitCode) -> NoReturn:
    typer.echo(clean(message), err=True)
    raise typer.Exit(code)
