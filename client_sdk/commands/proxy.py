"""`attested proxy` and `attested env`: a verified OpenAI endpoint on loopback, and how to point programs at it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import httpx
import typer

from attestation.errors import AttestationError
from client_sdk.commands.options import AsJson, ChannelOption, PolicyFile, check_address
from client_sdk.exits import ExitCode, exit_code
from client_sdk.present import clean
from client_sdk.proxy.guard import Guard
from client_sdk.proxy.running import Plan, Running
from client_sdk.streams import Verify
from client_sdk.transport import DEFAULT_CHANNEL

PORT = 8642


class VerifyWhen(StrEnum):
    """`Verify` as a command line spells it."""

    AS_READ = "as-read"
    BEFORE_USE = "before-use"


class Shell(StrEnum):
    """Whose words to print."""

    SH = "sh"
    FISH = "fish"
    POWERSHELL = "powershell"


Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="On loopback; 0 takes a free one.")]


def proxy(  # noqa: PLR0913, PLR0917  # a command's options are its parameters
    urls: Annotated[
        list[str],
        typer.Argument(metavar="URL…", help="Enclaves: https://host:port; the next where one fails."),
    ],
    policy: PolicyFile,
    port: Port = PORT,
    channel: ChannelOption = DEFAULT_CHANNEL,
    verify: Annotated[
        VerifyWhen,
        typer.Option("--verify", help="Pass stream events on when they come, or only when they are proven."),
    ] = VerifyWhen.AS_READ,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Send this API key, whatever key callers send. Everyone who can reach the port uses it.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep evidence, receipt, prompt and answer of every exchange, in clear."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Let this site's pages call from a browser, such as http://localhost:3000."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name under which callers reach this machine."),
    ] = None,
    expose_to_network: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Listen here in place of loopback. DANGER: prompts, answers and keys cross that network in clear.",
        ),
    ] = None,
) -> None:
    """Give any program a plain OpenAI endpoint on loopback whose every answer was verified.

    Set the base URL of the program to http://127.0.0.1:8642/v1 (`attested env` prints what to export). What cannot be
    verified is an error in OpenAI's shape that names the check, and a stream that turns out to be wrong never ends
    cleanly. http://127.0.0.1:8642/ shows what is trusted and until when.
    """
    guard = Guard(
        hosts=frozenset(name.lower() for name in allow_host or ()),
        origins=frozenset(allow_origin or ()),
        exposed=expose_to_network is not None,
    )
    plan = Plan(
        urls=[_url(url) for url in urls],
        policy=policy,
        channel=channel,
        verify=Verify.BEFORE_USE if verify is VerifyWhen.BEFORE_USE else Verify.AS_YOU_READ,
        host=_address(expose_to_network),
        port=port,
        guard=guard,
        api_key=None if api_key_file is None else _read_key(api_key_file),
        save=_folder(save),
    )
    try:
        running = Running(plan)
    except AttestationError as exc:
        _leave(str(exc), exit_code(exc))
    try:
        asyncio.run(running.serve())
    except OSError as exc:
        _leave(f"cannot listen on {plan.host} port {plan.port}: {exc.strerror or exc}", ExitCode.UNDECIDED)


def env(
    port: Port = PORT,
    shell: Annotated[Shell, typer.Option(help="Whose syntax.")] = Shell.SH,
    as_json: AsJson = False,
) -> None:
    """Print what to export so that programs use the proxy: eval "$(attested env)".

    API keys stay as they are: the proxy passes them through. Where it has a key of its own (--api-key-file), any text
    will do for programs that insist on one.
    """
    base = f"http://127.0.0.1:{port}"
    values = {"OPENAI_BASE_URL": f"{base}/v1", "OPENAI_API_BASE": f"{base}/v1", "ANTHROPIC_BASE_URL": base}
    forms = {
        Shell.SH: "export {}='{}'",
        Shell.FISH: "set -gx {} '{}'",
        Shell.POWERSHELL: "$env:{} = '{}'",
    }
    if as_json:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(forms[shell].format(name, value))


def _address(exposed: str | None) -> str:
    if exposed is None:
        return "127.0.0.1"
    try:
        return str(ipaddress.ip_address(exposed))
    except ValueError as exc:
        raise typer.BadParameter(f"{exposed!r} is no IP address") from exc


def _url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(check_address(text))
    except httpx.InvalidURL as exc:
        raise typer.BadParameter(f"{text!r}: {exc}") from exc
    if url.path not in {"", "/", "/v1", "/v1/"}:
        raise typer.BadParameter(f"{text!r}: give the enclave's address, https://host:port")
    return url


def _read_key(file: Path) -> str:
    try:
        key = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise typer.BadParameter(f"{file} cannot be read as a key") from exc
    if not key or not key.isprintable() or " " in key:
        raise typer.BadParameter(f"{file} holds no key: expected one line of printable characters")
    return key


def _folder(folder: Path | None) -> Path | None:
    if folder is not None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise typer.BadParameter(f"{folder}: {exc.strerror}") from exc
    return folder


def _say(text: str) -> None:
    typer.echo(clean(text), err=True)


def _leave(message: str, code: ExitCode) -> NoReturn:
    _say(message)
    raise typer.Exit(code)
