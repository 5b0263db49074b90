"""POST /sealed: a sealed request comes in, the request inside goes to `Inference`, and its answer leaves sealed.

Pure ASGI in front of the same application that answers unsealed requests, so both have the same limits, access rules and
receipts. Only /v1 is behind it. Before a request is opened, errors are plain and say nothing of it; after, all are sealed.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from attestation import sealed, sealed_ticket
from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.sealed_answer import ANSWER_TYPE, AnswerSealer
from attestation.sealed_head import OF_THE_CONNECTION, Headers, ResponseHead
from enclave_server.access.admission import overloaded
from enclave_server.asgi import Receive, Scope, Send
from enclave_server.errors import ApiError, body_timeout, too_large
from enclave_server.exchange import unsigned
from enclave_server.identities import STATE, Identities
from enclave_server.identity import Identity
from enclave_server.incoming import read_body
from enclave_server.replays import Replays
from enclave_server.settings import Settings
from enclave_server.shortcuts import BodyThatIsHere, arrived_body, chunk_writer, write_whole
from enclave_server.watch import ClientGoneError, Watch

LARGE_AT_ONCE = 16  # bodies of the largest size that may be on their way in, in one worker
_SMALL = 64 * 1024  # as much as the server below holds of any; so nobody who sends more keeps these out
RAW_PATH = sealed.PATH.encode()
_ASK = (sealed_ticket.HEADER, sealed_ticket.ASK)
_TYPE, _ANSWER_TYPE = sealed.REQUEST_TYPE.encode(), ANSWER_TYPE.encode()
_HEADERS = [
    (b"content-type", _ANSWER_TYPE),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks a balancer not to hold a stream back
]
_ERRORS = {
    Check.SEALED_FORMAT: (400, "This is not a sealed request of this protocol."),
    Check.SEALED_SUITE: (400, "The request is sealed with a suite that this gateway does not know."),
    Check.SEALED_OPEN: (400, "The sealed request does not open."),
    Check.SEALED_KEY: (422, "The request is sealed to another statement's keys; verify this enclave again."),
    Check.SEALED_TICKET: (422, "The ticket is not good any more; seal the request to the statement's key."),
    Check.SEALED_REPLAY: (409, "This sealed request was here before."),
    Check.SEALED_TIME: (400, "The time inside the seal is too far from this gateway's clock."),
}


class Inner(Protocol):
    """The application behind the seal."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]: ...

    def refuse(self, scope: Scope, send: Send, error: ApiError) -> Awaitable[None]:
        """Answer with a signed error."""
        ...


class Sealed:
    """The ASGI application for POST /sealed."""

    def __init__(
        self,
        settings: Settings,
        identities: Identities,
        inner: Inner,
        *,
        replays: Replays | None = None,  # shared by all workers
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._inner, self._wall_clock = settings, inner, wall_clock
        self._latest = 0.0
        self._reading = 0  # bytes of bodies on their way in
        self._identities = identities
        self._replays = replays or Replays(settings.sealed_remembered)
        self._limit = sealed.max_request_bytes(settings.max_request_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
            data = arrived_body(receive)
            if data is None:
                data = await self._read(receive)
            elif len(data) > self._limit:
                raise too_large(self._settings.max_request_bytes)
            now = self._now()
            envelope = sealed.parse_envelope(data)
            identity = self._identity(envelope.statement)
            opened = self._open(envelope, identity, now)
        except ClientGoneError:
            return
        except ApiError as error:
            await unsigned(send, error)
        except AttestationError as error:
            await unsigned(send, _api_error(error))
        else:
            state = {**scope.get("state", {}), STATE: envelope.statement}  # whatever the connection's key is
            ticket = partial(self._ticket, envelope, identity)
            sealing = _Sealing(send, AnswerSealer(opened.secret, opened.enc), ticket)
            await self._serve(opened, now, {**scope, "state": state}, receive, sealing)

    async def _read(self, receive: Receive) -> bytes:
        """The body, of somebody whose key is inside it: so what is held of such bodies has a bound of its own."""
        size, most = 0, self._settings.max_request_bytes

        def seen(part: bytes) -> None:
            nonlocal size
            size += len(part)
            self._reading += len(part)
            if size > _SMALL and self._reading > LARGE_AT_ONCE * self._limit:
                raise overloaded()

        try:
            with Watch(self._settings.body_seconds, body_timeout):
                return await read_body(receive, limit=most, seal=self._limit - most, seen=seen)
        finally:
            self._reading -= size

    def _now(self) -> float:
        """Unix seconds; a clock that is set back stands still, or where another worker forgot replays."""
        self._latest = max(self._latest, self._wall_clock(), self._replays.earliest)
        return self._latest

    def _admit(self, scope: Scope) -> None:
        if scope["method"] != "POST":
            raise ApiError(405, "method_not_allowed", "This route takes only POST.", allow="POST")
        headers = dict(scope["headers"])
        if headers.get(b"content-type") != _TYPE:
            raise ApiError(415, "unsupported_media_type", f"Content-Type must be {sealed.REQUEST_TYPE}.")
        if int(headers.get(b"content-length", 0)) > self._limit:
            raise too_large(self._settings.max_request_bytes)

    def _identity(self, statement: bytes) -> Identity:
        identity = self._identities.alive(statement)
        if identity is None or self._identities.leaving(statement):
            raise VerificationError(Check.SEALED_KEY, "sealed to another statement, or to one that is ending")
        return identity

    def _open(self, envelope: sealed.Envelope, identity: Identity, now: float) -> sealed.Opened:
        """In the order of cost: what is not new is not decrypted."""
        self._replays.check(envelope.enc, now)
        if envelope.suite is sealed.TICKET:
            sealed_ticket.check_ticket(envelope.enc, datetime.fromtimestamp(now, UTC))
        return sealed.open_request(envelope, identity.keys.sealing)

    def _ticket(self, envelope: sealed.Envelope, identity: Identity) -> Headers:
        """The header that brings a ticket. Not to X25519: what is sealed with a ticket is never weaker than X-Wing."""
        if envelope.suite is sealed.X25519:
            return ()
        now = datetime.fromtimestamp(self._now(), UTC)
        ticket = sealed_ticket.make_ticket(identity.keys.sealing.tickets, envelope.statement, now)
        return ((sealed_ticket.HEADER, sealed_ticket.dump_ticket(ticket)),)

    async def _serve(
        self, opened: sealed.Opened, now: float, scope: Scope, receive: Receive, send: _Sealing
    ) -> None:
        try:
            message = sealed.parse_message(opened.content)
        except AttestationError as error:
            await self._inner.refuse(scope, send, _api_error(error))
            return
        path, _, query = message.head.target.encode("ascii").partition(b"?")
        send.asked = _ASK in message.head.headers
        headers = [
            (n.encode("ascii"), v.encode("latin-1"))
            for n, v in message.head.headers
            if n != sealed_ticket.HEADER
        ]
        inside = {
            **scope,
            "method": message.head.method,
            "path": path.decode(),
            "raw_path": path,
            "query_string": query,
            "headers": [*headers, (b"content-length", b"%d" % len(message.body))],
        }
        try:
            sealed.check_time(message, datetime.fromtimestamp(now, UTC))
            self._replays.remember(opened.enc, now)
        except AttestationError as error:
            await self._inner.refuse(inside, send, _api_error(error))
            return
        except ApiError as error:
            await self._inner.refuse(inside, send, error)
            return
        await self._inner(inside, BodyThatIsHere(message.body, receive), send)


class _Sealing:
    """ASGI's `send`: what the application says is sealed on its way, one chunk for each piece, none of them delayed."""

    def __init__(self, send: Send, sealer: AnswerSealer, ticket: Callable[[], Headers]) -> None:
        self._send, self._sealer, self._ticket = send, sealer, ticket
        self.asked = False  # for a ticket
        self._head: ResponseHead | None = None
        self._write: Callable[[bytes], bool] | None = None  # the short way of a stream's chunks

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._head = _head(message, self._ticket() if self.asked else ())
            return
        last = not message.get("more_body", False)
        if not last:  # wait before sealing: a chunk that is sealed and then given up, for the time's end, would be missing
            if self._head is not None:
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                self._write = chunk_writer(self._send)
            elif self._write is not None and not self._write(b""):
                await self._send({"type": "http.response.body", "body": b"", "more_body": True})
        head, self._head = self._head, None
        data = self._sealer.seal(message.get("body", b""), head=head, last=last)
        if head is not None and last:
            headers = [*_HEADERS, (b"content-length", b"%d" % len(data))]
            if write_whole(self._send, 200, headers, data):
                return
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if last or self._write is None or not self._write(data):
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})


def _head(message: dict[str, Any], ticket: Headers) -> ResponseHead:
    pairs = [(name.decode("ascii"), value.decode("latin-1")) for name, value in message["headers"]]
    headers = tuple([pair for pair in pairs if pair[0] not in OF_THE_CONNECTION])
    return ResponseHead(status=message["status"], headers=headers + ticket)


def _api_error(error: AttestationError) -> ApiError:
    status, message = _ERRORS[error.check]
    return ApiError(status, error.check.replace(".", "_"), message)
