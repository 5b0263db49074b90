"""Parts for receipts, where a request asks for them with `Attested-Disclosure: 1`; no other request pays for it."""

from __future__ import annotations

from attestation.errors import MalformedError
from attestation.parts import DISCLOSURE_HEADER, RunningParts
from enclave_server.asgi import Fields
from enclave_server.errors import ApiError
from enclave_server.routes import ROUTES, Route

_HEADER = DISCLOSURE_HEADER.lower().encode()
_CHAT = ROUTES[b"/v1/chat/completions"]


def parts_for(fields: Fields, route: Route, nonce: bytes, body: bytes) -> RunningParts | None:
    """What hashes the parts of this chat, if the request asks for that; a 400 where there are none."""
    asked = fields.get(_HEADER)
    if asked is None:
        return None
    if asked != [b"1"]:
        raise ApiError(
            400, "invalid_disclosure", f"{DISCLOSURE_HEADER} must be 1, once.", param=DISCLOSURE_HEADER
        )
    if route is not _CHAT:
        raise ApiError(
            400,
            "disclosure_unsupported",
            "Only chat completions can be shown in part.",
            param=DISCLOSURE_HEADER,
        )
    try:
        return RunningParts(nonce, body)
    except MalformedError:
        return None  # without messages the engine refuses it, in its own words
