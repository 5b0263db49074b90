"""/v1/*: bytes in, bytes out, hashed as they pass, and a receipt on every answer. Plain ASGI, no framework.

`routes.py` lists the routes. A client that goes away ends the engine's work; an engine that fails ends the client's answer
with an error and a signed `aborted`.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

from attestation.receipt import Outcome
from enclave_server import errors
from enclave_server.access.gate import Access, Visit
from enclave_server.asgi import Receive, Scope, Send
from enclave_server.begun import Work
from enclave_server.content import read_request
from enclave_server.engine.answer import EngineAnswer, TooSlowError, UnreachableError, UpstreamError
from enclave_server.engine.upstream import Upstream
from enclave_server.errors import ApiError
from enclave_server.events import Events
from enclave_server.exchange import Exchange, Pace, unsigned
from enclave_server.framing import check_framing
from enclave_server.identities import STATE, Identities
from enclave_server.identity import Identity, ReceiptNumbers
from enclave_server.incoming import read_body, whole_body
from enclave_server.log import failure, log
from enclave_server.metrics import Metrics
from enclave_server.parts import parts_for
from enclave_server.peek import one_model, usage_of
from enclave_server.receipts.log import ReceiptQueue
from enclave_server.routes import DONE, MODEL, ROUTES, Route, model_of, route_of
from enclave_server.settings import Settings
from enclave_server.tokens import tokens_for
from enclave_server.watch import ClientGoneError, Watch

NO_ROUTE = b'{"detail":"Not Found"}'  # vLLM serves those of the model's own tasks only
MAX_TARGET = 2048  # bytes of path and query: a receipt repeats them
_ended = partial(errors.statement_ended, 503)  # soon nothing more could be signed


class EngineStatus(Protocol):
    """What the gateway wants to know of the engine."""

    @property
    def unready(self) -> str | None:
        """Why it cannot answer now; None when it can."""
        ...

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        ...


class Inference:
    """The ASGI application for everything below /v1."""

    def __init__(
        self,
        settings: Settings,
        identities: Identities,
        engine: EngineStatus,
        upstream: Upstream,
        access: Access,
        metrics: Metrics,
        receipts: ReceiptQueue | None = None,  # on their way to the log, where one is kept
    ) -> None:
        self._settings, self._identities, self._engine = settings, identities, engine
        self._upstream = upstream
        self._access, self._metrics, self._receipts = access, metrics, receipts
        access.begin(identities.worker)
        self._numbers = ReceiptNumbers()
        self._pace = Pace(settings.checkpoint_events, settings.checkpoint_seconds)
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity, left = self._identity(scope)
        if error := _unsignable(scope, left):
            return await unsigned(send, error)
        exchange = self._exchange(scope, send, identity)
        self.in_flight += 1
        started = time.monotonic()
        try:
            await self._serve(exchange, left, scope, receive)
        except ClientGoneError:
            pass
        except BaseException as exc:  # noqa: BLE001 - an answer without a receipt would be worse
            await exchange.fail(_told(exc))
        finally:
            self.in_flight -= 1
            path: bytes = scope["raw_path"]
            self._metrics.answered(path.decode() if path in ROUTES else "other", exchange, started)
        return None

    async def refuse(self, scope: Scope, send: Send, error: ApiError) -> None:
        """Answer a request with a signed error, without looking at it."""
        identity, left = self._identity(scope)
        if reason := _unsignable(scope, left):
            return await unsigned(send, reason)
        exchange = self._exchange(scope, send, identity)
        return await exchange.fail(exchange.refused or error)

    async def idle(self, seconds: float = 5) -> None:
        """Wait until the last answers, cut short or not, are on the wire."""
        for _ in range(int(seconds / 0.01)):
            if not self.in_flight:
                return
            await asyncio.sleep(0.01)

    def _identity(self, scope: Scope) -> tuple[Identity, float]:
        """The one whose statement the scope names, else the current one; and for how many seconds its key may sign."""
        named = _named(scope)
        identity = (self._identities.alive(named) if named else None) or self._identities.current
        return identity, self._identities.seconds_left(identity)

    def _exchange(self, scope: Scope, send: Send, identity: Identity) -> Exchange:
        receipts = self._receipts
        if receipts is not None and receipts.unready:
            receipts = None  # it will be refused, and the refusal is not logged
        return Exchange(scope, send, identity, self._numbers, self._pace, receipts)

    async def _serve(self, exchange: Exchange, left: float, scope: Scope, receive: Receive) -> None:
        if exchange.refused is not None:
            raise exchange.refused
        if exchange.log is not self._receipts:
            raise errors.log_unavailable()
        path: bytes = scope["raw_path"]
        route = self._admit(exchange, scope, path)
        longest = self._settings.request_seconds
        with Watch(min(left, longest), TimeoutError if longest <= left else _ended) as watch:
            visit = await self._access.admit(exchange.fields)
            try:
                limit, seen = self._settings.max_request_bytes, exchange.request.update
                body = whole_body(receive, limit=limit, seen=seen)
                if body is None:
                    with watch.sooner(self._settings.body_seconds, errors.body_timeout):
                        body = await read_body(receive, limit=limit, seen=seen)
                request = self._for_engine(exchange, route, path, body, visit)
                del body  # it may be large, and the answer may take long
                watch.client(scope.get("state", {}))
                async with request as answer:
                    await self._relay(exchange, answer, route)
            finally:
                self._access.leave(visit, exchange)

    def _for_engine(
        self, exchange: Exchange, route: Route, path: bytes, body: bytes, visit: Visit
    ) -> AbstractAsyncContextManager[EngineAnswer]:
        """What the engine is asked, once the body was judged."""
        fields = exchange.fields
        members, exchange.sampling, content_type = read_request(route, fields, body)
        exchange.parts = parts_for(fields, route, exchange.nonce, body)
        exchange.tokens = tokens_for(fields, route)
        sent, exchange.hide_usage = visit.body(body, members, path, ids=exchange.tokens is not None)
        return self._upstream.request(route.method, route.engine, sent, content_type)

    def _admit(self, exchange: Exchange, scope: Scope, path: bytes) -> Route:
        """Everything that can be refused before the body is read."""
        named = _named(scope)
        if named is not None and named != exchange.identity.statement_digest:
            raise errors.statement_ended(421)
        route = route_of(path)
        if route is None:
            raise ApiError(404, "not_found", "There is no such route here: the API is below /v1.")
        if exchange.method != route.method:
            raise ApiError(
                405, "method_not_allowed", f"This route takes only {route.method}.", allow=route.method
            )
        most = self._settings.max_headers
        if len(scope["headers"]) > most:
            raise ApiError(431, "too_many_headers", f"A request may have {most} headers.")
        most = self._settings.max_request_bytes
        for length in exchange.fields.get(b"content-length", ()):
            if int(length) > most:
                raise errors.too_large(most)
        check_framing(exchange.fields)
        if reason := self._engine.unready:
            raise errors.engine_unavailable(reason)
        return route

    async def _relay(self, exchange: Exchange, answer: EngineAnswer, route: Route) -> None:
        content_type = answer.content_type
        if answer.status == 200 and answer.is_stream:
            await exchange.start(content_type)
            await self._relay_stream(exchange, answer, route.ending or DONE)
            return
        body = await answer.read(self._settings.max_answer_bytes)
        if answer.status == 404 and body == NO_ROUTE:
            raise ApiError(404, "not_found", "The served model has no such route.")
        if answer.status >= 500 and not content_type.startswith(b"application/json"):
            raise UpstreamError("it failed in plain words")  # a router's name its workers' addresses
        if route is MODEL and answer.status == 200:
            body = one_model(body, model_of(exchange.target))
        outcome = Outcome.COMPLETE if answer.status == 200 else Outcome.ERROR
        usage = usage_of(body) if outcome is Outcome.COMPLETE else None
        if exchange.parts is not None:
            exchange.parts.answer(body)
        if exchange.tokens is not None:
            exchange.tokens.plain(body)
        await exchange.plain(answer.status, body, outcome, content_type=content_type, usage=usage)

    async def _relay_stream(self, exchange: Exchange, answer: EngineAnswer, ending: bytes) -> None:
        events = Events(ending=ending, hide_usage=exchange.hide_usage)

        def relay(chunk: bytes) -> Work | None:
            whole = events.feed(chunk)
            if not whole:
                return None
            if exchange.parts is not None:
                exchange.parts.answer(whole)
            if exchange.tokens is not None:
                exchange.tokens.events(whole)
            return exchange.events(whole)

        await answer.relay(relay)
        if events.failed:
            log.warning("engine reported an error in a stream")
            await exchange.end(Outcome.ABORTED)
        elif events.complete:
            await exchange.end(Outcome.COMPLETE, events.usage())
        else:
            raise UpstreamError("the stream ended before its last event")


def _told(error: BaseException) -> ApiError:
    """What a client hears of `error`, and the log of those that are not its own: only the kind. Raises what nobody may hold up."""
    match error:
        case ApiError():
            return error
        case UnreachableError():
            return errors.engine_unavailable("it is starting again")
        case TooSlowError() | TimeoutError():
            log.warning("engine too slow")
            return errors.engine_timeout()
        case UpstreamError():
            log.warning("engine failed in an exchange", **failure(error))
            return errors.engine_aborted()
        case asyncio.CancelledError():  # the server stops and has waited long enough
            return errors.stopping()
        case Exception():
            log.error("exchange failed", **failure(error))
            return errors.internal()
    raise error


def _unsignable(scope: Scope, left: float) -> ApiError | None:
    """Why no receipt can be about this request, where none can."""
    if left <= 0:
        return errors.identity_expired()
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_TARGET:
        return ApiError(414, "target_too_long", f"Path and query may have {MAX_TARGET} bytes.")
    return None


def _named(scope: Scope) -> bytes | None:
    """The statement that the connection's TLS key, or the seal, belongs to."""
    statement: bytes | None = scope.get("state", {}).get(STATE)
    return statement
