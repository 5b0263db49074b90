"""nginx ends TLS in front of the enclave, and writes down all it can: of a sealed exchange it sees sizes and times."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from attestation.checks import Check
from attestation.errors import UnavailableError, VerificationError
from client_sdk import AsyncOpenAI, OpenAI, async_attested_transport, attested_transport
from tests.caller import untrusting
from tests.client_sdk.conftest import certificate
from tests.client_sdk.test_cli import attested, states
from tests.processes import until
from tests.servers import MODEL, FakeEngine, LiveGateway, _Thread, free_port

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PROMPT, KEY = "a-marked-prompt-7f3a", "a-marked-key-9c1b"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}]}
SECRETS = (
    PROMPT,
    KEY,
    "You said",
    "chat/completions",
    "/v1/",
    "bearer",
    "x-stainless",
    '"choices"',
    "chatcmpl",
    "nothing-there",
    "not_found",
)
NAMES = (b"authorization", b"attested-receipt", b"x-stainless", b"text/event-stream", b"404")

CONFIG = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log debug;
events {{ worker_connections 64; }}
http {{
    log_format all escape=none '$request|$status|$upstream_status|$http_authorization|$http_attested_nonce'
        '|$sent_http_attested_receipt|$content_type|$request_body|$body_bytes_sent';
    access_log {folder}/access.log all;
    client_body_temp_path {folder}/body;
    client_body_in_single_buffer on;
    client_body_buffer_size 1m;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols TLSv1.3;
        ssl_certificate {pem};
        ssl_certificate_key {pem};
        location / {{
            proxy_pass http://127.0.0.1:{behind};
            proxy_http_version 1.1;
            proxy_set_header Host $host;
        }}
    }}
}}
"""


class Tap:
    """Between nginx and the gateway: plain towards nginx, TLS towards the gateway, and a copy of every byte."""

    def __init__(self, gateway: LiveGateway) -> None:
        self._gateway = gateway
        self.sent, self.answered = bytearray(), bytearray()
        self._worker = _Thread()
        self._serving: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._server = self._worker.run(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        self._worker.run(self._end())
        self._worker.close()

    async def _end(self) -> None:
        """Close the listener and end what is under way, so that nothing is left for the collector to find."""
        self._server.close()
        await asyncio.sleep(0.05)  # what was just accepted arrives in the loop's next rounds
        for task, writer in self._serving.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.sleep(0.05)  # and an aborted transport closes its socket in later ones

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving[asyncio.create_task(self._serve(reader, writer))] = writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        context: ssl.SSLContext = untrusting()
        try:
            far = await asyncio.open_connection("127.0.0.1", self._gateway.settings.port, ssl=context)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(
                self._copy(reader, far[1], self.sent), self._copy(far[0], writer, self.answered)
            )
        finally:
            far[1].transport.abort()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray) -> None:
        try:
            while data := await reader.read(65_536):
                kept += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@dataclass
class Balancer:
    gateway: LiveGateway
    tap: Tap
    folder: Path
    port: int

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/v1"

    def log(self) -> list[str]:
        """One line for each request that it passed on."""
        return (self.folder / "access.log").read_text(errors="replace").splitlines()

    def heads(self) -> list[bytes]:
        """The head of each request that went through it, and of each answer."""
        wire = bytes(self.tap.sent) + b"\r\n" + bytes(self.tap.answered)
        starts = [m.start() for m in re.finditer(rb"(?:POST|GET) /\S* HTTP/1\.1\r\n|HTTP/1\.1 \d+ ", wire)]
        return [wire[at : wire.index(b"\r\n\r\n", at)] for at in starts]

    def all_it_saw(self) -> bytes:
        files = [
            path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".pem"
        ]
        return b"\n".join([*files, self.tap.sent, self.tap.answered])


@pytest.fixture
def balancer(tmp_path: Path, gateway: LiveGateway) -> Iterator[Balancer]:
    """nginx with a certificate of its own in front of the real gateway."""
    if NGINX is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx)")
    folder, tap, port = tmp_path / "nginx", Tap(gateway), free_port()
    folder.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    pem = certificate(folder)
    config.write_text(CONFIG.format(folder=folder, port=port, pem=pem, behind=tap.port, user=user))
    process = subprocess.Popen(
        [NGINX, "-c", str(config), "-e", str(folder / "start.log")], stderr=subprocess.DEVNULL
    )
    running = Balancer(gateway, tap, folder, port)
    try:
        until(lambda: _answers(running))
        yield running
    finally:
        process.terminate()
        process.wait(60)
        tap.close()


def _answers(balancer: Balancer) -> bool:
    try:
        return (
            httpx.get(balancer.origin + "/healthz", verify=untrusting(), trust_env=False).status_code == 200
        )
    except httpx.TransportError:
        return False


def ask_blocking(balancer: Balancer) -> str:
    with OpenAI(
        base_url=balancer.url, policy=balancer.gateway.policy_text, api_key=KEY, channel="sealed"
    ) as client:
        client.chat.completions.create(**ASKED)
        with pytest.raises(openai.NotFoundError):
            client.post("/nothing-there", cast_to=object, body={"input": PROMPT})
        stream = client.chat.completions.create(stream=True, **ASKED)
        return "".join(c.delta.content or "" for event in stream for c in event.choices)


def ask_async(balancer: Balancer) -> str:
    async def work() -> str:
        async with AsyncOpenAI(
            base_url=balancer.url, policy=balancer.gateway.policy_text, api_key=KEY, channel="sealed"
        ) as client:
            await client.chat.completions.create(**ASKED)
            with pytest.raises(openai.NotFoundError):
                await client.post("/nothing-there", cast_to=object, body={"input": PROMPT})
            stream = await client.chat.completions.create(stream=True, **ASKED)
            return "".join([c.delta.content or "" async for event in stream for c in event.choices])

    return asyncio.run(work())


@pytest.mark.parametrize("ask", [ask_blocking, ask_async], ids=["blocking", "async"])
def test_it_sees_nothing_of_what_is_said(balancer: Balancer, ask: Any) -> None:
    """No header, key, path, status or byte of content is in its logs, its files, or what went through it."""
    assert ask(balancer) == f"You said: {PROMPT}"
    until(lambda: len([line for line in balancer.log() if "POST /sealed" in line]) == 3)
    seen = balancer.all_it_saw().lower()
    for secret in SECRETS:
        assert secret.lower().encode() not in seen, secret
    heads = [head.lower() for head in balancer.heads() if b"sealed" in head]
    assert len(heads) == 6
    assert not [(name, head) for name in NAMES for head in heads if name in head]
    for line in balancer.log():  # an answer, an error and a stream look the same
        if "POST /sealed" in line:
            assert line.startswith(
                "POST /sealed HTTP/1.1|200|200||||application/vnd.attested-inference.sealed-request"
            )


def test_the_same_search_finds_what_is_not_sealed(balancer: Balancer) -> None:
    """The control: a client that does not seal gives all of it away to logs and wire alike."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(verify=untrusting(), trust_env=False) as client:
        client.post(balancer.url + "/chat/completions", json=ASKED, headers=headers)
    until(lambda: any("chat/completions" in line for line in balancer.log()))
    seen = balancer.all_it_saw().lower()
    for secret in (PROMPT, KEY, "chat/completions", "authorization", "attested-receipt", "chatcmpl"):
        assert secret.lower().encode() in seen, secret


def test_without_being_told_the_sdk_does_not_go_through_it(balancer: Balancer, engine: FakeEngine) -> None:
    """By default the connection must end in the enclave; nothing is sent where it does not."""
    for channel in ("sealed+pinned", "pinned"):
        with OpenAI(
            base_url=balancer.url, policy=balancer.gateway.policy_text, api_key=KEY, channel=channel
        ) as client:
            with pytest.raises(VerificationError) as caught:
                client.models.list()
            assert caught.value.check is Check.CHANNEL_TLS_KEY
    assert not engine.requests
    assert KEY.encode() not in balancer.all_it_saw()


@pytest.mark.parametrize("http", [httpx, httpx2], ids=["httpx", "httpx2"])
def test_the_first_event_is_not_held_back(balancer: Balancer, engine: FakeEngine, http: Any) -> None:
    """Also nginx, with its buffering on, passes an event on while the engine has not made the next one."""
    engine.behaviour.hang_after = 1
    transport = attested_transport(balancer.gateway.policy_text, http.__name__, channel="sealed")
    with (
        http.Client(transport=transport) as client,
        client.stream("POST", balancer.url + "/chat/completions", json={**ASKED, "stream": True}) as answer,
    ):
        assert next(answer.iter_lines()).startswith('data: {"id"')
    until(lambda: engine.cancelled == 1)


def test_a_restart_behind_it_is_noticed_and_survived(balancer: Balancer, engine: FakeEngine) -> None:
    """New keys: the old ones are refused, the enclave is verified again, and the request is answered once."""
    transport = async_attested_transport(balancer.gateway.policy_text, channel="sealed")

    async def work() -> None:
        async with httpx.AsyncClient(transport=transport) as client:
            first = await client.post(balancer.url + "/chat/completions", json=ASKED)
            await asyncio.to_thread(balancer.gateway.restart)
            second = await client.post(balancer.url + "/chat/completions", json=ASKED)
        verdicts = [answer.extensions["attestation"].verdict for answer in (first, second)]
        assert verdicts[0].statement_digest != verdicts[1].statement_digest

    asyncio.run(work())
    assert len(engine.requests) == 2


def test_its_own_errors_are_none_of_the_enclaves(balancer: Balancer) -> None:
    """502 Bad Gateway is no answer, and may be tried again; it is never handed out."""
    with OpenAI(
        base_url=balancer.url, policy=balancer.gateway.policy_text, api_key=KEY, channel="sealed"
    ) as client:
        client.models.list()
        balancer.gateway.stop()
        with pytest.raises(UnavailableError) as caught:
            client.models.list()
        assert caught.value.check is Check.SEALED_MISSING
    balancer.gateway.start()


def test_the_command_line_goes_through_it(balancer: Balancer, tmp_path: Path) -> None:
    """`--channel sealed` for both commands; without it, the last link is refused."""
    policy = tmp_path / "policy.toml"
    policy.write_text(balancer.gateway.policy_text)
    options = ("--policy", str(policy))
    done = attested("verify", balancer.origin, *options, "--channel", "sealed")
    assert (done.returncode, states(done.stdout)[-1]) == (0, "passed"), done.stdout
    done = attested("chat", balancer.origin, PROMPT, *options, "--channel", "sealed")
    assert (done.returncode, done.stdout.strip()) == (0, f"You said: {PROMPT}"), done.stderr
    done = attested("verify", balancer.origin, *options)
    assert (done.returncode, states(done.stdout)[-1]) == (3, "REFUSED")
