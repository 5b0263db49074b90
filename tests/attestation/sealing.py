"""Sealed exchanges for tests: keys, a request and its answer in chunks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from attestation.binding import Keys
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError
from attestation.sealed import (
    SUITES,
    TICKET,
    X_WING,
    Opened,
    SealingKeys,
    Suite,
    open_request,
    parse_envelope,
    seal_request,
    seal_with_ticket,
)
from attestation.sealed_answer import AnswerOpener, AnswerSealer
from attestation.sealed_head import RequestHead, ResponseHead
from attestation.sealed_ticket import Ticket, make_ticket

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PRIVATE, STRANGER = SealingKeys.generate(), SealingKeys.generate()
KEYS = Keys(
    receipt_ed25519=bytes(32),
    tls_spki_sha256=bytes(32),
    sealing_x_wing=PRIVATE.public_x_wing,
    sealing_x25519=PRIVATE.public_x25519,
)
STATEMENT = b"\x0a" * 32
HEAD = RequestHead(
    method="POST",
    target="/v1/chat/completions?a=b",
    headers=(("authorization", "Bearer secret-key"), ("x-name", "größe")),
)
BODY = b'{"messages":"the secret prompt"}'
ANSWER_HEAD = ResponseHead(status=200, headers=(("content-type", "text/event-stream"),))
PARTS = (b"data: one\n\n", b"data: two\n\n", b"data: three\n\n", b"data: [DONE]\n\n")
EVERY = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


def seal(body: bytes = BODY, suite: Suite = X_WING, head: RequestHead = HEAD) -> tuple[bytes, AnswerOpener]:
    if suite is TICKET:
        return seal_with_ticket(head, body, ticket=ticket(), statement=STATEMENT, now=NOW)
    return seal_request(head, body, keys=KEYS, statement=STATEMENT, now=NOW, suite=suite)


def ticket() -> Ticket:
    return make_ticket(PRIVATE.tickets, STATEMENT, NOW)


def unseal(data: bytes, keys: SealingKeys = PRIVATE) -> Opened:
    return open_request(parse_envelope(data), keys)


def sealer_of(opened: Opened) -> AnswerSealer:
    return AnswerSealer(opened.secret, opened.enc)


def exchange(suite: Suite = X_WING) -> tuple[AnswerOpener, list[bytes]]:
    """What opens an answer, and the answer: its random value, and one chunk for each of PARTS."""
    data, opener = seal(suite=suite)
    sealer = sealer_of(unseal(data))
    first = sealer.seal(PARTS[0], head=ANSWER_HEAD)
    rest = [sealer.seal(part, last=part is PARTS[-1]) for part in PARTS[1:]]
    return opener, [first[:32], first[32:], *rest]


def read(opener: AnswerOpener, chunks: list[bytes]) -> None:
    opener.feed(b"".join(chunks))
    opener.end()


def refused(call: Callable[..., object], *args: Any) -> Check:
    with pytest.raises(AttestationError) as caught:
        call(*args)
    return caught.value.check


def value_or_malformed(call: Callable[..., object], *args: Any) -> None:
    try:
        call(*args)
    except MalformedError as error:
        assert error.check in {Check.SEALED_FORMAT, Check.SEALED_SUITE}  # noqa: PT017
    except AttestationError as error:
        assert error.check in {Check.SEALED_OPEN, Check.SEALED_TRUNCATED}  # noqa: PT017
