"""`attested proxy` and `attested env`: a verified OpenAI endpoint on loopback, and how to point programs at it."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import httpx
import typer

from attestation.errors import AttestationError
from client_sdk.exits import ExitCode, exit_code
from client_sdk.options import AsJson, ChannelOption, PolicyFile
from client_sdk.outcome import foreign, probe_path
from client_sdk.present import clean
from client_sdk.proxy.errors import NoAnswerError, api_error
from client_sdk.proxy.guard import Guard
from client_sdk.proxy.http import Answer, Head, Server
from client_sdk.proxy.page import Pages
from client_sdk.proxy.passing import Proxy
from client_sdk.proxy.upstream import Upstream
from client_sdk.receipts import Verify
from client_sdk.sealing import Channel
from client_sdk.terms import load_policy
from client_sdk.transport import DEFAULT_CHANNEL, Trust, async_attested_transport, check_url

PORT = 8642
STOP_SECONDS = 10.0
# given up well before the gateway does (75 s), so that no request meets a connection that is just being closed
LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=512, keepalive_expiry=30)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the command line said."""

    urls: Sequence[str]
    policy: Path
    channel: Channel
    verify: Verify
    host: str
    port: int
    guard: Guard
    api_key: str | None
    save: Path | None


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
        urls=urls,
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


class Running:
    """One proxy from its start to its end. Says what changes on standard error, and nothing of what passes."""

    def __init__(self, plan: Plan, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._plan, self._notes = plan, foreign(load_policy(plan.policy))
        trust = Trust(plan.policy)  # reads the file again for every attestation

        def make() -> httpx.AsyncBaseTransport:
            return async_attested_transport(trust, channel=plan.channel, verify=plan.verify, limits=LIMITS)

        origins = dict.fromkeys(check_url(_url(url)) for url in plan.urls)
        self.proxy = Proxy(
            [Upstream(origin, make, _now, monotonic) for origin in origins],
            plan.guard,
            clock=_now,
            verify=plan.verify,
            api_key=plan.api_key,
            save=plan.save,
        )
        self._pages = Pages(self.proxy, trust, channel=plan.channel, policy=self._policy, started=_now())
        self.server = Server(plan.guard.check, self._answer, api_error)

    def _policy(self) -> str:
        """The policy's file as it is now: that is what the next attestation reads."""
        try:
            digest = hashlib.sha256(self._plan.policy.read_bytes()).hexdigest()
        except OSError:
            return f"{self._plan.policy.name}, which cannot be read"
        return f"{self._plan.policy.name}, SHA-256 {digest[:16]}…"

    async def _answer(self, head: Head, body: bytes) -> Answer:
        if head.method in {"GET", "HEAD"} and (page := self._pages.answer(head.target, _now())) is not None:
            return page
        return await self.proxy.answer(head, body)

    async def serve(self) -> None:
        """Until a signal; a second one does not wait for answers that are under way."""
        port = await self.server.start(self._plan.host, self._plan.port)
        host = f"[{self._plan.host}]" if ":" in self._plan.host else self._plan.host
        _say(f"attested proxy: http://{host}:{port}/v1 (status: http://{host}:{port}/)")
        for note in self._notes:
            _say(note)
        loop, signalled = asyncio.get_running_loop(), asyncio.Semaphore(0)
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, signalled.release)
        probing = asyncio.create_task(self._probe())
        await signalled.acquire()
        probing.cancel()
        stopping = asyncio.create_task(self.server.stop(STOP_SECONDS))
        again = asyncio.create_task(signalled.acquire())
        await asyncio.wait({stopping, again}, return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        if not stopping.done():
            stopping.cancel()
            await self.server.stop(0)
        for upstream in self.proxy.upstreams:
            await upstream.close()

    async def _probe(self) -> None:
        """Verify each enclave once, so that the first request finds it verified and a mistake shows at once."""
        for upstream in self.proxy.upstreams:
            try:
                reply = await upstream.send("GET", probe_path(self._plan.channel), (), b"")
                await reply.close()
            except NoAnswerError as failure:
                _say(f"{upstream.origin}: {'REFUSED' if failure.refused else 'not reached'}: {failure.words}")
            else:
                _say(f"{upstream.origin}: verified")


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
        url = httpx.URL(text)
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


def _now() -> datetime:
    return datetime.now(UTC)


def _say(text: str) -> None:
    typer.echo(clean(text), err=True)


def _leave(message: str, code: ExitCode) -> NoReturn:
    _say(message)
    raise typer.Exit(code)
