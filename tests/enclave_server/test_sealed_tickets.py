"""Tickets over real sockets: who is given one, what it is good for, and who sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from attestation import sealed
from attestation.receipt import verify_receipt
from attestation.sealed import TICKET, X25519
from attestation.sealed_head import Headers, RequestHead
from attestation.sealed_ticket import SECONDS, Ticket, make_ticket, parse_ticket
from enclave_server.identities import Identities
from enclave_server.identity import make_identity
from enclave_server.sealed import Sealed
from tests.caller import Caller
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.test_replays import Answering, post
from tests.enclave_server.test_sealed import ASKED, STREAMED, Inside, Sealer, code_of, unsealed
from tests.processes import until
from tests.served import served
from tests.servers import FakeEngine, LiveGateway, gateway_settings

ASK: Headers = (("attested-ticket", "new"),)


@pytest.fixture
def client(gateway: LiveGateway) -> Iterator[Sealer]:
    with Sealer(gateway) as sealer:
        yield sealer


def given(inside: Inside) -> Ticket:
    return parse_ticket(inside.headers["attested-ticket"])


@pytest.mark.parametrize("asked", [ASKED, STREAMED], ids=["plain", "streamed"])
def test_an_answer_brings_a_ticket(client: Sealer, asked: dict[str, Any]) -> None:
    """To who asks, in the head inside, each time another one; a request that is sealed with it brings the next."""
    first = client.ask(asked, more=ASK)
    second = client.ask(asked, more=ASK, ticket=given(first))
    third = client.ask(asked, more=ASK, ticket=given(second))
    assert [inside.status for inside in (first, second, third)] == [200] * 3
    assert len({given(inside).id for inside in (first, second, third)}) == 3
    assert client.receipt(third).request.path == "/v1/chat/completions"


def test_a_stream_brings_it_when_it_begins(client: Sealer, engine: FakeEngine) -> None:
    """With its first event, while the engine has not made the second one."""
    engine.behaviour.hang_after = 1
    data, opener = client.seal(STREAMED, more=ASK)
    kind = {"content-type": sealed.REQUEST_TYPE}
    with client.http.stream("POST", sealed.PATH, content=data, headers=kind) as answer:
        pieces = answer.iter_raw()
        while opener.head is None:
            opener.feed(next(pieces))
        assert parse_ticket(dict(opener.head.headers)["attested-ticket"]).id
    until(lambda: engine.cancelled)


def test_who_does_not_ask_gets_none(client: Sealer) -> None:
    """Neither does who says something else, nor who says it outside of a seal."""
    for suite in (sealed.X_WING, TICKET):
        assert "attested-ticket" not in client.ask(ASKED, suite=suite).headers
    assert "attested-ticket" not in client.ask(ASKED, more=(("attested-ticket", "old"),)).headers
    data, opener = client.seal(ASKED)
    outside = client.post(data, **{"attested-ticket": "new"})
    assert "attested-ticket" not in outside.headers
    assert "attested-ticket" not in unsealed(outside, opener).headers
    plain = client.http.post("/v1/chat/completions", json=ASKED, headers=dict(ASK))
    assert plain.status_code == 200
    assert "attested-ticket" not in plain.headers


def test_x25519_gets_none(client: Sealer) -> None:
    """What is sealed with a ticket is as strong as X-Wing; a key exchange without ML-KEM starts no series."""
    inside = client.ask(ASKED, more=ASK, suite=X25519)
    assert inside.status == 200
    assert "attested-ticket" not in inside.headers


def test_a_ticket_is_seen_by_nobody_outside(client: Sealer, engine: FakeEngine) -> None:
    """Not in the answer's headers or body as they are on the wire, and not by the engine."""
    data, opener = client.seal(ASKED, more=ASK)
    answer = client.post(data)
    ticket = unsealed(answer, opener)
    text = ticket.headers["attested-ticket"].encode()
    assert b"attested-ticket" not in b"".join(name + value for name, value in answer.headers.raw).lower()
    assert text not in answer.content
    assert not [seen for seen in engine.requests if "attested-ticket" in str(seen).lower()]
    assert text.decode() not in str(engine.requests)


def test_errors_bring_one_too(client: Sealer) -> None:
    """Whatever is answered inside the seal."""
    for error in (client.ask({"model": 1}, more=ASK), client.ask(ASKED, more=ASK, late=-400)):
        assert error.status == 400
        assert client.ask(ASKED, ticket=given(error)).status == 200


def test_a_ticket_used_twice_is_good_twice(client: Sealer) -> None:
    """Two requests that were sealed with it are two requests, and each is answered once."""
    ticket = given(client.ask(ASKED, more=ASK))
    one, two = client.seal(ASKED, ticket=ticket), client.seal(ASKED, ticket=ticket)
    for data, opener in (one, two):
        assert unsealed(client.post(data), opener).status == 200
    for data, _ in (one, two):
        assert code_of(client.post(data)) == (409, "sealed_replay")


@pytest.mark.parametrize("age", [SECONDS + 60, -3600])
def test_a_ticket_that_is_not_of_now(client: Sealer, engine: FakeEngine, age: int) -> None:
    """Too old, or of a time that is still to come: said in plain, and nothing was opened."""
    identity = client.gateway.identity
    at = datetime.now(UTC) - timedelta(seconds=age)
    ticket = make_ticket(identity.keys.sealing.tickets, identity.statement_digest, at)
    assert code_of(client.post(client.seal(ASKED, ticket=ticket)[0])) == (422, "sealed_ticket")
    assert not engine.requests


async def test_a_clock_that_is_set_back_makes_no_ticket_good(tmp_path: Path) -> None:
    """Whoever sets the machine's clock cannot have an old ticket accepted again."""
    identity = make_identity(gateway_settings(tmp_path), engine_version="0")
    times = iter([1000.0, 1000.0 + SECONDS + 1, 1000.0])
    app = Sealed(
        gateway_settings(tmp_path), Identities(identity), Answering(), wall_clock=lambda: next(times)
    )
    now = datetime.fromtimestamp(1000, UTC)
    ticket = make_ticket(identity.keys.sealing.tickets, identity.statement_digest, now)
    head = RequestHead(method="GET", target="/v1/models")
    found = []
    for _ in range(3):
        data, _ = sealed.seal_with_ticket(
            head, b"", ticket=ticket, statement=identity.statement_digest, now=now
        )
        try:
            await post(app, data)
            found.append("answered")
        except AssertionError as said:
            found.append("sealed_ticket" if "'status': 422" in str(said) else str(said))
    assert found == ["answered", "sealed_ticket", "sealed_ticket"]


def test_what_was_altered_does_not_open(client: Sealer, engine: FakeEngine) -> None:
    """The id, the random value, the ciphertext; and a secret that somebody made up."""
    for at in (39, 79, 111, -1):
        data, _ = client.seal(ASKED, suite=TICKET)
        changed = bytearray(data)
        changed[at] ^= 1
        assert code_of(client.post(bytes(changed))) == (400, "sealed_open")
    ticket = given(client.ask(method="GET", target="/v1/models", more=ASK))
    made_up = replace(ticket, secret=bytes(32))
    engine.reset()
    assert code_of(client.post(client.seal(ASKED, ticket=made_up)[0])) == (400, "sealed_open")
    assert not engine.requests


def test_a_ticket_under_another_statement(client: Sealer) -> None:
    """It is good for the statement that it was given under, for as long as that lives, and for no other one."""
    old = client.gateway.identity.statement_digest
    ticket = given(client.ask(ASKED, more=ASK))
    client.gateway.succeed()
    assert client.gateway.identity.statement_digest != old
    assert code_of(client.post(client.seal(ASKED, ticket=ticket)[0])) == (400, "sealed_open")
    data, opener = client.seal(ASKED, ticket=ticket, statement=old)
    assert unsealed(client.post(data), opener).status == 200
    client.gateway.restart()
    assert code_of(client.post(client.seal(ASKED, ticket=ticket, statement=old)[0])) == (422, "sealed_key")


def test_any_worker_opens(tmp_path: Path) -> None:
    """A ticket that one of them gave is good at all of them, and what was sealed with it is answered by one of them, once."""
    values = {**fake_settings(tmp_path, chunks=10), "workers": 2}
    with (
        served(tmp_path / "gateway", **values) as gateway,
        Caller(gateway.origin, gateway.policy()) as caller,
    ):
        statement = caller.verdict.statement_digest
        head = RequestHead(method="GET", target="/v1/models", headers=(*ASK, ("attested-nonce", "A" * 43)))
        how: dict[str, Any] = {"statement": statement, "now": datetime.now(UTC)}
        kind = {"content-type": sealed.REQUEST_TYPE, "connection": "close"}  # so that anybody may take it

        def ask(data: bytes) -> httpx.Response:
            return caller.http.post(sealed.PATH, content=data, headers=kind)

        data, opener = sealed.seal_request(head, b"", keys=caller.verdict.statement.keys, **how)
        ticket, answered = given(unsealed(ask(data), opener)), set()
        for _ in range(200):
            data, opener = sealed.seal_with_ticket(head, b"", ticket=ticket, **how)
            inside = unsealed(ask(data), opener)
            token = inside.headers["attested-receipt"]
            receipt = verify_receipt(token, caller.verdict.statement.keys.receipt_ed25519)
            answered.add(receipt.id.rpartition("-")[0])
            if len(answered) == 2:
                break
        assert len(answered) == 2, "each worker has a series of its own"
        assert {code_of(ask(data)) for _ in range(12)} == {(409, "sealed_replay")}
