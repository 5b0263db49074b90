"""Tickets in the SDK: each request after the first is sealed with one, nobody sees them, and a refused one is an error that may be retried."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.sealed import TICKET, X25519, X_WING, Suite, parse_envelope
from attestation.sealed_ticket import Ticket, dump_ticket
from attestation.verdict import Verdict
from client_sdk import OpenAI, attested_transport
from client_sdk.tickets import GOOD_FOR, MOST, Tickets
from tests.client_sdk.test_tamper_sealed import Rig, whole_rig  # noqa: F401 - a fixture
from tests.client_sdk.transported import ASKED, CHAT, LIBRARIES, async_client_for, client_for, proven
from tests.client_sdk.transported import STREAMED as STREAM

REFUSAL = (422, "application/json", b'{"error":{"message":"m","code":"sealed_ticket"}}')


# ------------------------------------------------------------------------------------------------------ what is kept


def ticket(number: int) -> Ticket:
    return Ticket(id=number.to_bytes(40, "big"), secret=bytes(32))


def brought(number: int) -> tuple[tuple[str, str], ...]:
    return (("content-type", "x"), ("attested-ticket", dump_ticket(ticket(number))))


class Kept:
    """Tickets, and the time that has passed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.tickets = Tickets(lambda: self.now)

    def bring(self, number: int, under: bytes = b"s") -> None:
        assert self.tickets.take_out(brought(number), under) == (("content-type", "x"),)


def test_each_is_given_out_once_and_the_newest_first() -> None:
    """Then there is none; and an answer without one changes nothing."""
    kept = Kept()
    kept.bring(1)
    kept.bring(2)
    assert kept.tickets.take_out((("a", "b"),), b"s") == (("a", "b"),)
    assert [kept.tickets.take(b"s") for _ in range(3)] == [ticket(2), ticket(1), None]


def test_none_is_given_out_under_another_verdict() -> None:
    """It came under one that is gone, and is dropped."""
    kept = Kept()
    kept.bring(1, b"old")
    kept.bring(2, b"new")
    kept.bring(3, b"old")
    assert kept.tickets.take(b"new") == ticket(2)
    assert kept.tickets.take(b"new") is None
    assert kept.tickets.take(b"old") is None


def test_none_is_given_out_that_is_old() -> None:
    """The enclave would refuse it, or might by the time that it gets it."""
    kept = Kept()
    kept.bring(1)
    kept.now += GOOD_FOR - 1
    kept.bring(2)
    kept.now += 1
    assert [kept.tickets.take(b"s") for _ in range(2)] == [ticket(2), None]


def test_they_are_bounded_and_can_be_dropped() -> None:
    """Of too many the oldest go."""
    kept = Kept()
    for number in range(MOST + 1):
        kept.bring(number)
    assert [kept.tickets.take(b"s") for _ in range(MOST + 1)] == [*map(ticket, range(MOST, 0, -1)), None]
    kept.bring(1)
    kept.tickets.drop()
    assert kept.tickets.take(b"s") is None


def test_what_is_no_ticket_is_an_error() -> None:
    """The enclave does not say such a thing."""
    with pytest.raises(MalformedError) as caught:
        Tickets().take_out((("attested-ticket", "AAAA"),), b"s")
    assert caught.value.check is Check.SEALED_FORMAT


# ------------------------------------------------------------------------------------------------------ over sockets


@pytest.fixture
def rig(whole_rig: Rig) -> Iterator[Rig]:  # noqa: F811
    """With nobody meddling yet."""
    whole_rig.engine.reset()
    whole_rig.middle.requests.clear()
    whole_rig.middle.answers.clear()
    yield whole_rig
    whole_rig.middle.ask = whole_rig.middle.edit = None


def suites(rig: Rig) -> list[Suite]:
    return [parse_envelope(data).suite for data in rig.middle.requests]


def used(rig: Rig) -> list[bytes]:
    """The ids of the tickets on the wire."""
    envelopes = map(parse_envelope, rig.middle.requests)
    return [envelope.enc[:40] for envelope in envelopes if envelope.suite is TICKET]


@LIBRARIES
def test_only_the_first_needs_a_key_exchange(rig: Rig, http: Any) -> None:
    """Plain and streamed in turn; each is sealed with what the answer before it brought, which is there when a stream begins."""
    with client_for(rig.gateway.policy_text, http) as client:
        for asked in (ASKED, STREAM, STREAM, ASKED):
            response = client.post(rig.gateway.origin + CHAT, json=asked)
            assert response.status_code == 200
            assert proven(response).attested
        with client.stream("POST", rig.gateway.origin + CHAT, json=STREAM) as open_stream:
            client.post(rig.gateway.origin + CHAT, json=ASKED)
            open_stream.read()
    assert suites(rig) == [X_WING, *[TICKET] * 5]
    assert len(set(used(rig))) == 5, "no two requests show the same ticket"


@LIBRARIES
def test_only_the_first_needs_a_key_exchange_async(rig: Rig, http: Any) -> None:
    """The same among tasks."""

    async def work() -> None:
        async with async_client_for(rig.gateway.policy_text, http) as client:
            for asked in (ASKED, STREAM, ASKED):
                response = await client.post(rig.gateway.origin + CHAT, json=asked)
                assert proven(response).attested
            asking = [client.post(rig.gateway.origin + CHAT, json=ASKED) for _ in range(6)]
            assert all(proven(response).attested for response in await asyncio.gather(*asking))

    asyncio.run(work())
    assert suites(rig)[:3] == [X_WING, TICKET, TICKET]
    assert len(set(used(rig))) == len(used(rig)) >= 3


def test_many_threads(rig: Rig) -> None:
    """They never take the same ticket, and there is at most one key exchange for each of them."""
    with client_for(rig.gateway.policy_text) as client, ThreadPoolExecutor(8) as threads:

        def ask(_: int) -> bool:
            return proven(client.post(rig.gateway.origin + CHAT, json=ASKED)).attested

        assert all(threads.map(ask, range(64)))
    assert len(rig.middle.requests) == 64
    assert len(set(used(rig))) == len(used(rig)) >= 64 - 8, (
        "a key exchange only while the others' are under way"
    )


def test_tickets_end_with_the_verdict_that_they_came_under(rig: Rig) -> None:
    """So a ticket that somebody read in this process's memory opens what comes after it for an hour at most, and not for a week."""
    now = [datetime.now(UTC)]
    with client_for(rig.gateway.policy_text, max_age=timedelta(seconds=100), clock=lambda: now[0]) as client:

        def verdict() -> Verdict:
            return proven(client.post(rig.gateway.origin + CHAT, json=ASKED)).verdict

        first, same = verdict(), verdict()
        now[0] += timedelta(seconds=101)
        later = verdict()
    assert suites(rig) == [X_WING, TICKET, X_WING]
    assert first is same is not later
    assert first.statement_digest == later.statement_digest


def test_a_process_that_forks_takes_no_ticket_along(rig: Rig) -> None:
    """Else a request of each would show the same one: what is called in a child leaves none, and it goes on with a key exchange."""
    transport: Any = attested_transport(rig.gateway.policy_text)
    with httpx.Client(transport=transport) as client:
        for _ in range(2):
            assert client.post(rig.gateway.origin + CHAT, json=ASKED).status_code == 200
        (enclave,) = transport._enclaves._enclaves.values()
        transport.close()  # the parent's
        enclave.forked()
        assert client.post(rig.gateway.origin + CHAT, json=ASKED).status_code == 200
    assert suites(rig) == [X_WING, TICKET, X_WING]


# ------------------------------------------------------------------------------------------------------ refusals


def refuse_tickets(rig: Rig, times: int) -> None:
    """Answer so many of the requests that are sealed with a ticket as if it were too old, and let the enclave have none."""
    left = times

    def ask(data: bytes) -> bytes:
        nonlocal left
        if parse_envelope(data).suite is TICKET and left:
            left -= 1
            old = bytearray(data)
            old[39 + 32 : 39 + 40] = bytes(8)  # the ticket's time
            return bytes(old)
        return data

    rig.middle.ask = ask


def test_a_ticket_that_is_refused(rig: Rig) -> None:
    """It is told, as what another try may mend; all tickets are dropped, so the next request comes with a key exchange."""
    with client_for(rig.gateway.policy_text) as client:
        url = rig.gateway.origin + CHAT
        with client.stream("POST", url, json=STREAM) as one, client.stream("POST", url, json=STREAM) as two:
            one.read(), two.read()
        refuse_tickets(rig, 1)
        with pytest.raises(UnavailableError) as caught:
            client.post(url, json=ASKED)
        assert caught.value.check is Check.SEALED_TICKET
        assert proven(client.post(url, json=ASKED)).attested
        assert proven(client.post(url, json=STREAM)).attested
    assert suites(rig) == [X_WING, TICKET, TICKET, X_WING, TICKET]
    assert len(rig.engine.requests) == 4


def test_openais_client_retries_it(rig: Rig, tmp_path: Path) -> None:
    """Its caller sees an answer."""
    (tmp_path / "policy.toml").write_text(rig.gateway.policy_text)
    with OpenAI(base_url=f"{rig.gateway.origin}/v1", policy=tmp_path / "policy.toml", api_key="k") as client:
        client.chat.completions.create(**ASKED)
        refuse_tickets(rig, 1)
        assert client.chat.completions.create(**ASKED).attestation.attested
    assert suites(rig) == [X_WING, TICKET, X_WING]


def test_who_refuses_everything_has_nothing_sent_twice(rig: Rig) -> None:
    """Whoever says so may have passed the request on: it is for the caller to ask again."""
    with client_for(rig.gateway.policy_text) as client:
        client.post(rig.gateway.origin + CHAT, json=ASKED)
        rig.middle.edit = lambda _: REFUSAL
        for _ in range(2):
            with pytest.raises(UnavailableError) as caught:
                client.post(rig.gateway.origin + CHAT, json=ASKED)
            assert caught.value.check is SCENES["a refusal of the ticket, made up"]
    assert suites(rig) == [X_WING, TICKET, X_WING]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def at_time(data: bytes, change: Callable[[int], int]) -> bytes:
    return data[:71] + change(int.from_bytes(data[71:79], "big")).to_bytes(8, "big") + data[79:]


#: What is done to a request that is sealed with a ticket, and what refuses it.
REQUESTS: dict[str, tuple[Check, Callable[[bytes], bytes]]] = {
    "the ticket's id changed": (Check.SEALED_OPEN, lambda d: flipped(d, 39)),
    "the ticket's time changed": (Check.SEALED_OPEN, lambda d: at_time(d, lambda time: time - 1)),
    "the ticket's time set to long ago": (Check.SEALED_TICKET, lambda d: at_time(d, lambda _: 0)),
    "the ticket's time set to a later one": (Check.SEALED_TICKET, lambda d: at_time(d, lambda t: t + 3600)),
    "the random value changed": (Check.SEALED_OPEN, lambda d: flipped(d, 80)),
    "the ciphertext changed": (Check.SEALED_OPEN, lambda d: flipped(d, 120)),
    "the tag changed": (Check.SEALED_OPEN, lambda d: flipped(d, len(d) - 1)),
    "cut": (Check.SEALED_OPEN, lambda d: d[:-1]),
    "cut in the ticket": (Check.SEALED_FORMAT, lambda d: d[:80]),
    "called a key exchange": (Check.SEALED_OPEN, lambda d: d[:1] + X25519.number + d[7:]),
    "another statement": (Check.SEALED_KEY, lambda d: d[:7] + bytes(32) + d[39:]),
}
#: What is done to more than one exchange, and the check that the tests below expect.
SCENES = {
    "a request recorded before, in place of a new one": Check.SEALED_REPLAY,
    "the ticket of another request": Check.SEALED_OPEN,
    "the answer to the request before": Check.SEALED_OPEN,
    "a refusal of the ticket, made up": Check.SEALED_TICKET,
}


@pytest.mark.parametrize("case", REQUESTS)
def test_what_was_altered_is_not_sent_again(rig: Rig, case: str) -> None:
    """It does not open, as nothing that was touched does; that is told, and not mended."""
    check, alter = REQUESTS[case]
    with client_for(rig.gateway.policy_text) as client:
        client.post(rig.gateway.origin + CHAT, json=ASKED)
        rig.middle.ask = alter
        with pytest.raises(AttestationError) as caught:
            client.post(rig.gateway.origin + CHAT, json=ASKED)
    assert caught.value.check is check
    assert suites(rig) == [X_WING, TICKET]
    assert len(rig.engine.requests) == 1


@pytest.mark.parametrize("case", [case for case in SCENES if "made up" not in case])
def test_one_request_or_answer_for_another(rig: Rig, case: str) -> None:
    """Of the same client, asking for the same, each sealed with a ticket of its own."""
    with client_for(rig.gateway.policy_text) as client:
        for _ in range(2):
            client.post(rig.gateway.origin + CHAT, json=ASKED)
        old, answer = rig.middle.requests[1], rig.middle.answers[1]
        if case == "the answer to the request before":
            rig.middle.edit = lambda _: answer
        elif case == "the ticket of another request":
            rig.middle.ask = lambda data: data[:39] + old[39:79] + data[79:]
        else:
            rig.middle.ask = lambda _: old
        with pytest.raises(AttestationError) as caught:
            client.post(rig.gateway.origin + CHAT, json=ASKED)
    assert caught.value.check is SCENES[case]
    assert suites(rig) == [X_WING, TICKET, TICKET]


def test_an_answer_that_does_not_open_is_not_asked_for_again(rig: Rig) -> None:
    """The enclave may have answered; only a plain word that it did not makes the client seal once more."""
    with client_for(rig.gateway.policy_text) as client:
        client.post(rig.gateway.origin + CHAT, json=ASKED)
        rig.middle.edit = lambda answer: (*answer[:2], answer[2][:-1] + bytes([answer[2][-1] ^ 1]))
        with pytest.raises(AttestationError) as caught:
            client.post(rig.gateway.origin + CHAT, json=ASKED)
    assert caught.value.check is Check.SEALED_OPEN
    assert suites(rig) == [X_WING, TICKET]


def test_a_restart_between_two_requests(rig: Rig) -> None:
    """The tickets are gone with the keys: the enclave is verified anew, and the same request is sealed to its new statement."""
    with client_for(rig.gateway.policy_text, channel="sealed") as client:
        client.post(rig.gateway.origin + CHAT, json=ASKED)
        rig.gateway.restart()
        response = client.post(rig.gateway.origin + CHAT, json=ASKED)
        assert proven(response).verdict.statement_digest == rig.gateway.identity.statement_digest
    assert suites(rig) == [X_WING, TICKET, X_WING]


# ------------------------------------------------------------------------------------------------------ who sees them


def test_a_ticket_is_seen_by_nobody(rig: Rig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is in no header, log, repr or saved bundle, and neither is the wish for one; and it does not leave in clear."""
    caplog.set_level(logging.DEBUG)
    with client_for(rig.gateway.policy_text) as client:
        response = client.post(rig.gateway.origin + CHAT, json=ASKED)
        proven(response).save(tmp_path / "bundle.json")
        client.post(rig.gateway.origin + CHAT, json=ASKED)
        shown = [caplog.text, repr(vars(response)), repr(proven(response)), repr(vars(client))]
    shown += [str(response.headers.raw), str(response.request.headers.raw)]
    name = used(rig)[0]
    secret = given_secret(rig, name)
    forms = (b64url_encode(name + secret), secret.hex(), repr(secret)[2:-1], b64url_encode(secret))
    shown.append((tmp_path / "bundle.json").read_text())
    for text in shown:
        assert "attested-ticket" not in text.lower()
        assert not [form for form in forms if form in text]
    wire = b"".join([*rig.middle.requests, *(body for _, _, body in rig.middle.answers)])
    assert secret not in wire
    assert forms[0].encode() not in wire


def given_secret(rig: Rig, name: bytes) -> bytes:
    identity = rig.gateway.identity
    text = b"attested-inference/sealed-ticket/v1\0" + identity.statement_digest + name
    return hmac.digest(identity.keys.sealing.tickets, text, "sha256")
