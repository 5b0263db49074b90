"""Tickets as bytes: what is sealed with one, for how long it is good, and what opens."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.sealed import TICKET, parse_envelope, parse_message, seal_with_ticket
from attestation.sealed_ticket import SECONDS, Ticket, check_ticket, dump_ticket, make_ticket, parse_ticket
from tests.attestation.sealing import (
    BODY,
    HEAD,
    NOW,
    PRIVATE,
    STATEMENT,
    STRANGER,
    refused,
    seal,
    ticket,
    unseal,
)


def seal_with(given: Ticket, statement: bytes = STATEMENT) -> bytes:
    return seal_with_ticket(HEAD, BODY, ticket=given, statement=statement, now=NOW)[0]


def test_a_ticket_comes_out_as_it_went_in() -> None:
    """As text in a head; and it is shown to nobody who prints it."""
    given = ticket()
    assert parse_ticket(dump_ticket(given)) == given
    assert repr(given.secret)[2:-1] not in repr(given)
    assert PRIVATE.tickets.hex() not in repr(PRIVATE)
    assert repr(PRIVATE.tickets)[2:-1] not in repr(PRIVATE)


def test_no_two_tickets_are_alike() -> None:
    """Made for the same statement at the same moment, they share nothing but that moment."""
    one, two = ticket(), ticket()
    assert one.id[:32] != two.id[:32]
    assert one.id[32:] == two.id[32:] == int(NOW.timestamp()).to_bytes(8, "big")
    assert one.secret != two.secret


def test_a_ticket_tells_little_of_the_answer_that_it_came_in() -> None:
    """The second would often name the one answer that was given in it; the time is the same for all of five minutes."""
    times = {
        make_ticket(PRIVATE.tickets, STATEMENT, NOW + timedelta(seconds=at)).id[32:]
        for at in range(0, 300, 7)
    }
    assert times == {int(NOW.timestamp()).to_bytes(8, "big")}
    assert make_ticket(PRIVATE.tickets, STATEMENT, NOW + timedelta(seconds=300)).id[32:] not in times


def test_the_secret_is_of_this_key_statement_and_id() -> None:
    """As the protocol writes it, so that nobody has to remember a ticket."""
    given = ticket()
    text = b"attested-inference/sealed-ticket/v1\0" + STATEMENT + given.id
    assert given.secret == hmac.digest(PRIVATE.tickets, text, "sha256")


def test_a_ticket_used_twice_repeats_no_key() -> None:
    """Both requests open, and neither tells of the other: the same content is another ciphertext under another key."""
    given = ticket()
    one, two = (parse_envelope(seal_with(given)) for _ in range(2))
    assert one.suite is two.suite is TICKET
    assert one.enc[:40] == two.enc[:40] == given.id
    assert one.enc[40:] != two.enc[40:]
    assert one.ciphertext != two.ciphertext
    for data in (seal_with(given), seal_with(given)):
        assert parse_message(unseal(data).content).body == BODY
    mixed = seal_with(given)[:111] + seal_with(given)[111:]  # one's random value, the other's ciphertext
    assert refused(unseal, mixed) is Check.SEALED_OPEN


#: Tickets that this enclave did not give under this statement, or not to who uses them.
FOREIGN: dict[str, tuple[Check, Callable[[Ticket], Ticket]]] = {
    "a ticket of another statement": (
        Check.SEALED_OPEN,
        lambda _: make_ticket(PRIVATE.tickets, b"\x0b" * 32, NOW),
    ),
    "a ticket of another enclave": (
        Check.SEALED_OPEN,
        lambda _: make_ticket(STRANGER.tickets, STATEMENT, NOW),
    ),
    "the id of a ticket seen on the way, with a secret made up": (
        Check.SEALED_OPEN,
        lambda seen: replace(seen, secret=bytes(32)),
    ),
    "a ticket made younger by who has it": (
        Check.SEALED_OPEN,
        lambda own: replace(own, id=own.id[:32] + (int(NOW.timestamp()) + 1).to_bytes(8, "big")),
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_ticket_that_was_not_given_opens_nothing(case: str) -> None:
    """Neither its key nor its statement or id is another one's."""
    check, change = FOREIGN[case]
    assert refused(unseal, seal_with(change(ticket()))) is check


def test_a_ticket_of_another_statement_or_enclave_opens_nothing() -> None:
    """Nor when the statement that it was given for is exchanged outside, and not at another enclave."""
    other = make_ticket(PRIVATE.tickets, b"\x0b" * 32, NOW)
    moved = seal_with(other, b"\x0b" * 32)
    assert refused(unseal, moved[:7] + STATEMENT + moved[39:]) is Check.SEALED_OPEN
    assert refused(unseal, seal_with(ticket()), STRANGER) is Check.SEALED_OPEN


def test_a_ticket_has_its_time() -> None:
    """It is good for a quarter of an hour from its time on, and not before it."""
    enc = parse_envelope(seal_with(ticket())).enc
    for age in (0, 1, SECONDS):
        check_ticket(enc, NOW + timedelta(seconds=age))
    for age in (-1, SECONDS + 1):
        with pytest.raises(VerificationError) as caught:
            check_ticket(enc, NOW + timedelta(seconds=age))
        assert caught.value.check is Check.SEALED_TICKET


def test_a_request_with_a_ticket_is_short() -> None:
    """It leaves out the key exchange, and is padded as any other."""
    data, _ = seal(suite=TICKET)
    assert len(data) == 1 + 6 + 32 + 72 + 1024 + 16
    assert len(seal()[0]) - len(data) == 1120 - 72


@given(st.text(max_size=120) | st.binary(min_size=70, max_size=74).map(b64url_encode))
def test_any_text_as_a_ticket(text: str) -> None:
    """A value, or an error of ours."""
    try:
        assert dump_ticket(parse_ticket(text)) == text
    except MalformedError as error:
        assert error.check is Check.SEALED_FORMAT  # noqa: PT017
