"""POST /.well-known/secrets: what the owner gives to this enclave, once. Answers say what was wrong and quote nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.provisioning import (
    MAX_MESSAGE_BYTES,
    MEDIA_TYPE,
    PATH,
    check_secrets,
    open_secrets,
    parse_sealed_secrets,
    verify_secrets,
)
from enclave_server.errors import ApiError
from enclave_server.identities import Identities
from enclave_server.log import log
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings, read_owner_key

_ERRORS = {
    Check.SECRET_FORMAT: (400, "These are not sealed secrets of this protocol."),
    Check.SEALED_OPEN: (400, "The sealed secrets do not open."),
    Check.SECRET_SIGNATURE: (403, "The secrets are not signed by this gateway's owner."),
    Check.SECRET_STATEMENT: (422, "The secrets are for another statement; verify this enclave again."),
    Check.SECRET_TIME: (400, "The time in the secrets is too far from this gateway's clock."),
    Check.SECRET_NAME: (400, "These are not exactly the secrets that this gateway waits for."),
    Check.SECRET_VALUE: (400, "A secret cannot be used for what it is named after."),
    Check.SECRET_AGAIN: (409, "This gateway has other secrets already; restart it first."),
}


def add_secrets_route(control: FastAPI, settings: Settings, identities: Identities, secrets: Secrets) -> None:
    """Take the owner's secrets, from whoever brings them."""
    owner = read_owner_key(settings.owner_key or "")

    def take(data: bytes) -> None:
        sealed = parse_sealed_secrets(data)
        identity = identities.alive(sealed.statement)
        if identity is None:
            raise VerificationError(Check.SECRET_STATEMENT, "sealed to a statement that is not alive here")
        given = verify_secrets(open_secrets(sealed, identity.keys.sealing), owner)
        check_secrets(given, statement=sealed.statement, names=settings.secrets, now=datetime.now(UTC))
        secrets.take(given)

    @control.post(PATH, status_code=204)
    async def given(request: Request) -> Response:
        if request.headers.get("content-type") != MEDIA_TYPE:
            raise ApiError(415, "unsupported_media_type", f"Content-Type must be {MEDIA_TYPE}.")
        data = await _body(request, settings.body_seconds)
        try:
            take(data)
        except AttestationError as error:
            why = (
                f": {error.detail}" if error.check is Check.SECRET_VALUE else ""
            )  # which one; it quotes nothing
            log.warning("secrets refused", reason=f"{error.check}{why}")
            status, message = _ERRORS[error.check]
            raise ApiError(status, error.check.replace(".", "_"), message) from None
        log.info("secrets taken", count=len(settings.secrets))
        return Response(status_code=204)


async def _body(request: Request, seconds: float) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                data += part
                if len(data) > MAX_MESSAGE_BYTES:
                    raise ApiError(413, "request_too_large", f"At most {MAX_MESSAGE_BYTES} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise ApiError(408, "body_timeout", "The request's body did not arrive in time.") from None
    return bytes(data)
