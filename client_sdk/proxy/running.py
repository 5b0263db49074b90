"""One proxy from its start to its end: what it is told, what it serves, and how it stops."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import typer

from client_sdk._bodies import Clock
from client_sdk.outcome import foreign, probe_path
from client_sdk.present import clean
from client_sdk.proxy.errors import NoAnswerError, api_error
from client_sdk.proxy.guard import Guard
from client_sdk.proxy.http import Answer, Head, Server
from client_sdk.proxy.page import Pages
from client_sdk.proxy.passing import Proxy
from client_sdk.proxy.upstream import Upstream
from client_sdk.sealing import Channel
from client_sdk.streams import Verify
from client_sdk.terms import load_policy
from client_sdk.transport import Trust, async_attested_transport, check_url

STOP_SECONDS = 10.0
# given up well before the gateway does (75 s), so that no request meets a connection that is just being closed
LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=512, keepalive_expiry=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the command line said."""

    urls: Sequence[httpx.URL]
    policy: Path
    channel: Channel
    verify: Verify
    host: str
    port: int
    guard: Guard
    api_key: str | None
    save: Path | None


class Running:
    """One proxy from its start to its end. Says what changes on standard error, and nothing of what passes."""

    def __init__(
        self, plan: Plan, *, clock: Clock | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._plan, self._notes = plan, foreign(load_policy(plan.policy))
        self._clock = clock = clock or _now
        trust = Trust(plan.policy, clock=clock)  # reads the file again for every attestation

        def make() -> httpx.AsyncBaseTransport:
            return async_attested_transport(trust, channel=plan.channel, verify=plan.verify, limits=LIMITS)

        origins = dict.fromkeys(check_url(url) for url in plan.urls)
        self.proxy = Proxy(
            [Upstream(origin, make, clock, monotonic) for origin in origins],
            plan.guard,
            clock=clock,
            verify=plan.verify,
            api_key=plan.api_key,
            save=plan.save,
        )
        self._pages = Pages(self.proxy, trust, channel=plan.channel, policy=self._policy, started=clock())
        self.server = Server(plan.guard.check, self._answer, api_error)

    def _policy(self) -> str:
        """The policy's file as it is now: that is what the next attestation reads."""
        try:
            digest = hashlib.sha256(self._plan.policy.read_bytes()).hexdigest()
        except OSError:
            return f"{self._plan.policy.name}, which cannot be read"
        return f"{self._plan.policy.name}, SHA-256 {digest[:16]}…"

    async def _answer(self, head: Head, body: bytes) -> Answer:
        if (
            head.method in {"GET", "HEAD"}
            and (page := self._pages.answer(head.target, self._clock())) is not None
        ):
            return page
        return await self.proxy.answer(head, body)

    async def serve(self) -> None:
        """Until a signal; a second one does not wait for answers that are under way."""
        port = await self.server.start(self._plan.host, self._plan.port)
        host = f"[{self._plan.host}]" if ":" in self._plan.host else self._plan.host
        _say(f"attested proxy: http://{host}:{port}/v1 (status: http://{host}:{port}/)")
        if not self._plan.guard.exposed:
            _say(f'to use it here: eval "$(attested env --port {port})"')
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
                how = "REFUSED" if failure.refused else "not reached, each request tries again"
                _say(f"{upstream.origin}: {how}: {failure.words}")
            else:
                _say(f"{upstream.origin}: verified")


def _now() -> datetime:
    return datetime.now(UTC)


def _say(text: str) -> None:
    typer.echo(clean(text), err=True)
