"""This boot's keys: new each time, in memory only, named by a statement that ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from attestation.binding import parse_statement
from attestation.receipt import Outcome
from enclave_server.engine_flags import answer_flags
from enclave_server.identity import Identity, ReceiptNumbers, make_identity, tls_context
from tests.caller import Caller
from tests.servers import LiveGateway, gateway_settings


def test_statement(tmp_path: Path) -> None:
    """The statement is canonical and names model, engine, flags and configuration, for as long as the settings say."""
    settings = gateway_settings(tmp_path, identity_hours=2)
    now = datetime.now(UTC)
    identity = make_identity(settings, engine_version="1.2", now=now)
    statement = parse_statement(identity.statement_bytes)
    assert statement == identity.statement
    assert sha256(identity.statement_bytes).digest() == identity.statement_digest
    assert (statement.engine.version, statement.engine.flags) == ("1.2", answer_flags(settings))
    assert statement.config == settings.digest()
    assert statement.model.digest.hex() == settings.model_digest
    assert statement.not_after == int((now + timedelta(hours=2)).timestamp())
    assert not identity.expired()
    assert make_identity(settings, engine_version="1.2", now=now - timedelta(hours=3)).expired()


def test_keys_are_new_each_time(tmp_path: Path) -> None:
    """Two boots share nothing, and no key is written anywhere, not even for TLS."""
    settings = gateway_settings(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    first, second = (make_identity(settings, engine_version="1") for _ in range(2))
    tls_context(first)
    assert first.statement.keys.receipt_ed25519 != second.statement.keys.receipt_ed25519
    assert first.statement.keys.tls_spki_sha256 != second.statement.keys.tls_spki_sha256
    assert sorted(tmp_path.rglob("*")) == before


def test_numbers() -> None:
    """Two boots never give out the same receipt id."""
    one, other = ReceiptNumbers(), ReceiptNumbers()
    numbers = [one.next(), one.next(), other.next(), other.next()]
    assert len({number for number, _ in numbers}) == 4
    assert [counter for _, counter in numbers] == [1, 2, 1, 2]


def test_expired(gateway: LiveGateway, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the statement's end nothing is answered but a signed refusal, and readiness says why."""
    monkeypatch.setattr(Identity, "expired", lambda _: True)
    answer = caller.chat("hello")
    assert (answer.status, answer.error, answer.outcome) == (503, "identity_expired", Outcome.ERROR)
    assert caller.http.get("/readyz").json() == {"ready": False, "reason": "identity_expired"}
