"""How a request is protected on its way, and the way into and out of a seal. No I/O.

`Channel` has no member that protects nothing: one cannot be asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from attestation import sealed, sealed_ticket
from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError, VerificationError
from attestation.receipt import NONCE_HEADER
from attestation.sealed_answer import ANSWER_TYPE, AnswerOpener
from attestation.sealed_head import OF_THE_CONNECTION, RequestHead
from attestation.sealed_ticket import Ticket
from client_sdk._bodies import Http
from client_sdk.exchange import Exchange

MAX_ERROR_BYTES = 64 * 1024
#: What goes around every sealed request, whatever is inside.
HEADERS = (
    (b"Content-Type", sealed.REQUEST_TYPE.encode()),
    (b"Accept", ANSWER_TYPE.encode()),
    (b"Accept-Encoding", b"identity"),
    (b"User-Agent", b"attested-inference"),
)
_SEALED = ANSWER_TYPE.encode()
_ASK = (sealed_ticket.HEADER, sealed_ticket.ASK)
_IDENTITY = ("accept-encoding", "identity")
_NONCE = NONCE_HEADER.lower()
_NOT_THE_CALLERS = OF_THE_CONNECTION | {_NONCE, _IDENTITY[0], _ASK[0]}
_TICKET_REFUSED = Check.SEALED_TICKET.replace(".", "_")
_BY_CODE = {
    check.replace(".", "_"): check
    for check in (
        Check.SEALED_FORMAT,
        Check.SEALED_SUITE,
        Check.SEALED_KEY,
        Check.SEALED_OPEN,
        Check.SEALED_REPLAY,
    )
}


class Channel(StrEnum):
    """What keeps a request from everybody but the attested enclave."""

    SEALED_AND_PINNED = (
        "sealed+pinned"  # encrypted to the attested sealing key, over TLS to the attested TLS key
    )
    SEALED = "sealed"  # TLS may end anywhere, such as at a balancer
    PINNED = "pinned"  # TLS to the attested key, and no seal inside

    @classmethod
    def _missing_(cls, value: object) -> Channel:
        raise ValueError(f"there is no channel {value!r}: {', '.join(cls)}")

    @property
    def seals(self) -> bool:
        return self is not Channel.PINNED

    @property
    def pins(self) -> bool:
        return self is not Channel.SEALED


def seal(
    exchange: Exchange, headers: list[tuple[bytes, bytes]], now: datetime, ticket: Ticket | None = None
) -> tuple[bytes, AnswerOpener]:
    """The body of the POST to /sealed, and what opens its answer, which is asked for a ticket for another request."""
    pairs = [
        (inner, value.decode("latin-1")) for name, value in headers if (inner := _inner(name)) is not None
    ]
    fields = (*pairs, *own_fields(exchange), _ASK)
    head = RequestHead(method=exchange.method, target=exchange.path, headers=fields)
    body, statement = exchange.body, exchange.verdict.statement_digest
    if ticket is not None:
        return sealed.seal_with_ticket(head, body, ticket=ticket, statement=statement, now=now)
    keys = exchange.verdict.statement.keys
    return sealed.seal_request(head, body, keys=keys, statement=statement, now=now)


@lru_cache(maxsize=256)
def _inner(name: bytes) -> str | None:
    """A field's name as it stands in a seal; None for what stays outside, or is for us to say."""
    lower = name.decode("ascii").lower()
    return None if lower in _NOT_THE_CALLERS else lower


def own_fields(exchange: Exchange) -> tuple[tuple[str, str], ...]:
    """What every request has of ours, in place of fields of the same name."""
    return _IDENTITY, (_NONCE, b64url_encode(exchange.nonce))


class Around:
    """What goes around sealed requests to one address, found out once."""

    def __init__(self, url: Http) -> None:
        parts = {name: getattr(url, name) for name in ("raw_scheme", "raw_host", "port", "raw_path")}
        self._url = SimpleNamespace(**parts)
        self._headers = [(b"Host", url.netloc), *HEADERS]

    def request(self, stream: Http, length: int, extensions: Mapping[str, Any]) -> Http:
        """As much of a request as the library's transports read; one of its own takes five times as long to make."""
        headers = SimpleNamespace(raw=[*self._headers, (b"Content-Length", b"%d" % length)])
        return SimpleNamespace(
            method="POST", url=self._url, headers=headers, stream=stream, extensions=dict(extensions)
        )


def is_sealed(status: int, headers: list[tuple[bytes, bytes]]) -> bool:
    """The answer says that it is sealed; opening it will tell."""
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return status == 200 and kinds == [_SEALED]


def not_sealed(status: int, body: bytes) -> AttestationError:
    """What an answer without a seal means. Anybody may have written it: it is never handed out as an answer."""
    code = error_code(body)
    if code == _TICKET_REFUSED:
        return UnavailableError(
            Check.SEALED_TICKET,
            "the gateway, or somebody in its place, did not take the ticket that the request was sealed with",
            advice="Ask again: without tickets, a request is sealed to the statement's key",
        )
    if check := _BY_CODE.get(code):
        return VerificationError(
            check,
            f"the gateway, or somebody in its place, did not open the sealed request: {code}",
            advice="If it stays: see whether a balancer sends requests of one client to different enclaves",
        )
    detail = f"expected a sealed answer, found status {status}" + (f" ({code})" if code else "")
    if status >= 500 or status == 429:
        return UnavailableError(
            Check.SEALED_MISSING, detail, advice="Something before the enclave is not well"
        )
    return VerificationError(
        Check.SEALED_MISSING,
        detail,
        advice="What answered is not the gateway in the enclave, or the seal was taken off; do not use the answer",
    )


def error_code(body: bytes) -> str:
    """The `code` of an error in OpenAI's shape, when it looks like one."""
    try:
        value: Any = json.loads(body)
        code = value["error"]["code"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return code if isinstance(code, str) and code.isidentifier() and len(code) < 64 else ""
