"""The ASGI application: a dispatcher that hands /v1 to `Inference`, and everything else to FastAPI.

The hot path goes around the framework; the control plane (health, readiness, evidence) does not need to be fast.
There is no BaseHTTPMiddleware here: it would cost more than all of the gateway's own work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from email.utils import formatdate
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from attestation._b64 import b64url_encode
from attestation.evidence import MEDIA_TYPE
from attestation.receipt import NONCE_HEADER
from enclave_server.access.gate import Access
from enclave_server.asgi import Receive, Scope, Send
from enclave_server.engine.upstream import Upstream
from enclave_server.errors import ApiError
from enclave_server.evidence.attest import Attester
from enclave_server.exchange import parse_nonce
from enclave_server.identities import Identities
from enclave_server.inference import EngineStatus, Inference
from enclave_server.metrics import Metrics
from enclave_server.receipts.log import ReceiptLog, ReceiptQueue
from enclave_server.receipts.routes import add_log_routes
from enclave_server.replays import Replays
from enclave_server.sealed import RAW_PATH as SEALED
from enclave_server.sealed import Sealed
from enclave_server.secrets_route import add_secrets_route
from enclave_server.settings import Settings

App = Callable[[Scope, Receive, Send], Awaitable[None]]


def create_app(
    settings: Settings,
    *,
    identities: Identities,
    attester: Attester,
    engine: EngineStatus,
    upstream: Upstream,
    access: Access | None = None,
    replays: Replays | None = None,
    receipt_log: ReceiptLog | None = None,
) -> App:
    """The whole gateway, but for the engine, which somebody else starts and stops."""
    access, metrics = access or Access(settings), Metrics()
    receipts = receipt_log.queue() if receipt_log else None
    inference = Inference(settings, identities, engine, upstream, access, metrics, receipts)

    def unready() -> str | None:
        logging = receipts.unready if receipts else None
        return identities.unready or access.unready or engine.unready or attester.unready or logging

    _watch(metrics, inference, access, engine, attester, identities, receipts, unready)
    sealed = Sealed(settings, identities, inference, replays=replays)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.enter_context(
                metrics.served(settings.metrics_host, settings.metrics_port, settings.workers)
            )
            await stack.enter_async_context(access)
            await stack.enter_async_context(upstream)
            await stack.enter_async_context(_running(attester.renew()))
            stack.enter_context(_hearing(identities, attester.renew_now))
            yield
            await inference.idle()
            if receipts is not None:
                await receipts.drain()

    control = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_control_routes(control, attester, unready)
    if settings.secrets:
        add_secrets_route(control, settings, identities, access.secrets)
    if receipt_log is not None:
        add_log_routes(control, settings, receipt_log.key)

    def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        path = scope["raw_path"] if scope["type"] == "http" else b""
        if path.startswith(b"/v1/") or path == b"/v1":
            return inference(scope, receive, send)
        if path == SEALED:
            return sealed(scope, receive, send)
        return control(scope, receive, send)  # type: ignore[arg-type]  # the same ASGI under other names

    return app


def _watch(
    metrics: Metrics,
    inference: Inference,
    access: Access,
    engine: EngineStatus,
    attester: Attester,
    identities: Identities,
    receipts: ReceiptQueue | None,
    unready: Callable[[], str | None],
) -> None:
    """What is looked at when somebody asks for numbers."""
    metrics.watch(
        {
            "in_flight": ("Requests under way, waiting ones too.", lambda: inference.in_flight),
            "queued": ("Requests waiting for a place.", lambda: access.admission.queued),
            "ready": ("1 when it can answer.", lambda: unready() is None),
            "log_waiting": (
                "Receipts that were not handed to the log yet.",
                lambda: receipts.waiting if receipts else 0,
            ),
            "engine_restarts": ("How often the engine was started again.", lambda: engine.restarts),
            "evidence_age_seconds": ("Age of the renewed evidence.", lambda: attester.age),
            "collateral_left_seconds": (
                "Until the first of the collateral expires.",
                lambda: attester.collateral.left,
            ),
            "collateral_failing": (
                "1 when the last attempt to fetch or keep collateral failed.",
                lambda: attester.collateral.failing,
            ),
            "identities": ("Identities that have not ended.", lambda: identities.count),
            "identity_age_seconds": ("Since the current identity was made.", lambda: identities.age),
            "identity_left_seconds": ("Until the current identity ends.", lambda: identities.left),
        }
    )


def _add_control_routes(control: FastAPI, attester: Attester, unready: Callable[[], str | None]) -> None:
    @control.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @control.get("/readyz")
    async def readyz(response: Response) -> dict[str, bool | str | None]:
        reason = unready()
        response.status_code = 503 if reason else 200
        return {"ready": reason is None, "reason": reason}

    @control.get("/.well-known/attestation")
    async def attestation(nonce: str | None = None) -> Response:
        document = attester.current() if nonce is None else await attester.fresh(parse_nonce(nonce))
        headers = {
            NONCE_HEADER: b64url_encode(document.nonce),
            "Cache-Control": "no-store",
            "Date": formatdate(usegmt=True),  # so that a client whose clock is off can say so
        }
        return Response(document.body, media_type=MEDIA_TYPE, headers=headers)

    @control.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return Response(error.to_json(), error.status, error.headers, "application/json")

    @control.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        body = ApiError(
            error.status_code, code, "There is no such route here: the API is below /v1."
        ).to_json()
        return Response(body, error.status_code, error.headers, "application/json")


@contextmanager
def _hearing(identities: Identities, arrived: Callable[[], None]) -> Iterator[None]:
    """Take successors from the parent as they come, for as long as the block lasts."""
    inbox, loop = identities.inbox, asyncio.get_running_loop()
    if inbox is None:
        yield
        return

    def hear() -> None:
        if not identities.receive():
            loop.remove_reader(inbox)
        arrived()

    loop.add_reader(inbox, hear)
    try:
        yield
    finally:
        loop.remove_reader(inbox)


@asynccontextmanager
async def _running(work: Any) -> AsyncIterator[None]:
    """A background task that lives as long as the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
