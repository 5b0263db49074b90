"""One enclave as a transport sees it: attest first, seal to its key, pin the connection, send, check the receipt.

Written once for both worlds (`_worlds`). Two promises: no byte of a request leaves before there is a verdict that is
valid at that moment, nor unsealed on a connection whose peer does not hold the attested TLS key; and no answer is handed
out that its receipt does not cover.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.sealed import PATH as SEALED_PATH
from attestation.verdict import Verdict
from client_sdk._bodies import Clock, Http
from client_sdk._worlds import TooLongError, World
from client_sdk.exchange import Exchange
from client_sdk.kept import EVIDENCE_PATH, Fetched, KeptSession, fetch_evidence, survive_forks
from client_sdk.receipts import Attestation, PlainCheck, check_answer, fields
from client_sdk.sealing import (
    MAX_ERROR_BYTES,
    Around,
    Channel,
    is_sealed,
    not_sealed,
    own_fields,
    seal,
)
from client_sdk.session import make_nonce
from client_sdk.streams import StreamCheck, Verify
from client_sdk.tickets import Tickets
from client_sdk.tls import pinned_context, unpinned_context

#: The gateway's own routes, which carry no user's data and no receipts (docs/protocol.md §6).
WITHOUT_RECEIPT = frozenset({EVIDENCE_PATH, "/healthz", "/readyz", "/metrics"})
_NOT_SENT = {Check.CHANNEL_TLS_KEY, Check.SEALED_KEY, Check.SESSION_ENDED}
_MISDIRECTED = 421  # the statement of a connection has ended, and nothing was done (docs/protocol.md §12)


class Enclave:
    """Everything between one origin and one client's requests to it. Many threads or tasks may share it."""

    def __init__(
        self,
        world: World,
        origin: str,
        session: KeptSession,
        clock: Clock,
        channel: Channel,
        options: Mapping[str, Any],
        verify: Verify = Verify.AS_YOU_READ,
    ) -> None:
        self._world, self._origin, self._session, self._clock = world, origin, session, clock
        self._channel, self._options, self._verify = channel, options, verify
        self._around = Around(world.http.URL(origin + SEALED_PATH))
        self.forked()
        survive_forks(self)

    def forked(self) -> None:
        """What another process holds is not used in this one: neither its connections nor its locks, nor its tickets."""
        self._places: dict[asyncio.AbstractEventLoop | None, _Place] = {}
        self._tickets = Tickets()

    async def exchange(self, request: Http) -> Http:
        """Send `request`, once, to an attested enclave; the answer with its receipt checked."""
        body = await self._world.body(request)
        verdict = await self._attested()
        try:
            return await self._send(request, body, verdict)
        except VerificationError as error:
            if error.check not in _NOT_SENT:
                raise
            refused, before = error, self._session.attempts
        # The enclave has other keys, or the verdict ended, so nobody has read anything: verify it anew, then send.
        stale, verdict = verdict, await self._attested(verdict, before)
        if refused.check is Check.SEALED_KEY and verdict.statement_digest == stale.statement_digest:
            raise refused  # the same enclave still: whoever says that it cannot open this is somebody else
        return await self._send(request, body, verdict)

    async def close(self) -> None:
        """Close every connection that this place has; those of other event loops end with them."""
        here, self._places = self._places.get(self._world.place()), {}
        if here is not None and here.connections is not None:
            await self._world.close(here.connections.transport)

    def _here(self) -> _Place:
        """What belongs to this event loop. What belonged to closed ones goes: a client may be used in one after another."""
        loop = self._world.place()
        here = self._places.get(loop)
        if here is None:
            for other in list(self._places):
                if other is not None and other.is_closed():
                    self._places.pop(other, None)
            here = self._places.setdefault(loop, _Place(self._world.lock()))  # atomic, for threads that race
        return here

    async def _attested(self, stale: Verdict | None = None, before: int = 0) -> Verdict:
        """A verdict that is valid now, and connections to its key; with `stale`, one that was reached since."""
        verdict, here = None if stale else self._session.ready(), self._here()
        if verdict is None or not here.connected_to(verdict):
            async with here.attesting:  # so that no more than one thread waits for the session
                verdict = await self._world.apart(lambda: self._session.verdict(self._fetch, stale, before))
                await self._connect(here, verdict)
        self._session.renew_when_due(self._fetch)
        return verdict

    def _fetch(self, nonce: bytes) -> Fetched:
        return fetch_evidence(self._world.http, self._origin, self._options, nonce)

    async def _connect(self, here: _Place, verdict: Verdict) -> None:
        """Connections to the verdict's TLS key. Those to another key serve their answers to the end, and no request."""
        pin = verdict.statement.keys.tls_spki_sha256
        old = here.connections
        if old is not None and old.pin == pin:
            return
        context = pinned_context(pin) if self._channel.pins else unpinned_context()
        here.connections = Connections(pin, self._world.connect(context, self._options))
        if old is not None and old.retire():
            await self._world.close(old.transport)

    async def _send(self, request: Http, body: bytes, verdict: Verdict) -> Http:
        connections = self._here().connections
        pin = verdict.statement.keys.tls_spki_sha256
        if connections is None or connections.pin != pin or not connections.enter():
            raise VerificationError(
                Check.CHANNEL_TLS_KEY,
                "the enclave changed its key while this request waited; nothing was sent",
            )
        streams = False
        try:
            nonce = make_nonce()
            path = request.url.raw_path.decode("ascii")
            exchange = Exchange(verdict=verdict, nonce=nonce, method=request.method, path=path, body=body)
            if self._channel.seals and path.partition("?")[0] not in WITHOUT_RECEIPT:
                answer = await self._sealed(connections.transport, request, exchange)
            elif self._channel.pins:
                answer = await self._pinned(connections.transport, request, exchange)
            else:
                raise _cannot_be_sealed(path)
            checked = await self._checked(exchange, answer, connections)
            streams = isinstance(checked.extensions["attestation"].check, StreamCheck)
            return checked
        finally:
            if not streams:
                await self._left(connections)

    def _check_held(self, verdict: Verdict) -> None:
        """Called when a connection is there and nothing was written to it: a request may have waited long for one."""
        current = self._session.current()
        if current is None or current.statement_digest != verdict.statement_digest:
            raise VerificationError(
                Check.SESSION_ENDED,
                f"the verdict of {verdict.verified_at:%H:%M:%S} ended while the request waited for a connection; nothing was sent",
                advice="Allow more connections, or fewer requests at once",
            )

    async def _pinned(self, transport: Http, request: Http, exchange: Exchange) -> Http:
        """Send `request` with our fields, over a connection to the attested key."""
        same = {"headers": request.headers, "stream": request.stream, "extensions": request.extensions}
        sent = self._world.http.Request(request.method, request.url, **same)
        for name, text in own_fields(exchange):
            sent.headers[name] = text
        answer = await self._world.send(transport, sent, lambda: self._check_held(exchange.verdict))
        if answer.status_code != _MISDIRECTED:
            return answer
        await self._world.close(answer.stream)
        raise VerificationError(
            Check.CHANNEL_TLS_KEY, "the enclave answered that the statement of this connection has ended"
        )

    async def _sealed(self, transport: Http, request: Http, exchange: Exchange) -> Http:
        """Send `request` sealed; the answer that was inside the seal, its body still to be read."""
        under = exchange.verdict.nonce
        data, opener = seal(exchange, request.headers.raw, self._clock(), self._tickets.take(under))
        stream = self._world.http.ByteStream(data)
        sent = self._around.request(stream, len(data), request.extensions)
        answer = await self._world.send(transport, sent, lambda: self._check_held(exchange.verdict))
        try:
            if not is_sealed(answer.status_code, answer.headers.raw):
                self._tickets.drop()  # it may be them that were refused
                raise not_sealed(answer.status_code, await self._error_body(answer.stream))
            head, stream = await self._world.unseal(answer.stream, opener)
            inside = self._tickets.take_out(head.headers, under)
        except BaseException:
            await self._world.close(answer.stream)
            raise
        raw = [(name.encode(), text.encode("latin-1")) for name, text in inside]
        headers = self._world.http.Headers(raw)
        answer.status_code, answer.headers, answer.stream = head.status, headers, stream
        return answer

    async def _error_body(self, stream: Http) -> bytes:
        try:
            return await self._world.read(stream, MAX_ERROR_BYTES)
        except TooLongError:
            return b""

    async def _checked(self, exchange: Exchange, answer: Http, connections: Connections) -> Http:
        """The answer with nothing in it that is unproven: a verified body, or a stream that verifies itself."""
        check: PlainCheck | StreamCheck | None = None
        body = answer.stream
        try:
            if exchange.path.partition("?")[0] not in WITHOUT_RECEIPT:
                said = fields(answer.headers.raw)
                check = check_answer(exchange, answer.status_code, said, self._verify)
            if isinstance(check, StreamCheck):
                body = self._world.stream(body, check, self._clock, lambda: self._left(connections))
            else:
                data = await self._world.read(body, None)
                if check is not None:
                    check.feed(data)
                    data = check.finish(self._clock())
                await self._world.close(body)
                body = self._world.http.ByteStream(data)
        except BaseException:
            await self._world.close(answer.stream)
            raise
        answer.stream = body
        answer.attestation = answer.extensions["attestation"] = Attestation(
            exchange.verdict, check, self._origin
        )
        return answer

    async def _left(self, connections: Connections) -> None:
        if connections.leave():
            await self._world.close(connections.transport)


def _cannot_be_sealed(path: str) -> VerificationError:
    return VerificationError(
        Check.CHANNEL_UNPROTECTED,
        f"{path} is no route for sealed requests, and this client's connections are not pinned to the enclave",
        advice="Ask for it in another way; only routes under /v1 are sealed",
    )


class _Place:
    """What a client has where its connections can be used."""

    def __init__(self, lock: AbstractAsyncContextManager[Any]) -> None:
        self.attesting = lock
        self.connections: Connections | None = None

    def connected_to(self, verdict: Verdict) -> bool:
        """Not so for a moment after the verdict, while its connections are being made."""
        connections = self.connections
        return connections is not None and connections.pin == verdict.statement.keys.tls_spki_sha256


class Connections:
    """The connections to one TLS key, and how many answers are still coming over them."""

    def __init__(self, pin: bytes, transport: Http) -> None:
        self.pin, self.transport = pin, transport
        self._lock = threading.Lock()
        self._answers = 0
        self._retired = False

    def enter(self) -> bool:
        """One more answer; False when they are retired, and take no request any more."""
        with self._lock:
            self._answers += not self._retired
            return not self._retired

    def leave(self) -> bool:
        """One answer less; True when it was the last one, and they are to be closed."""
        with self._lock:
            self._answers -= 1
            return self._retired and not self._answers

    def retire(self) -> bool:
        """No request any more; True when nothing is left on them, and they are to be closed."""
        with self._lock:
            self._retired = True
            return not self._answers
