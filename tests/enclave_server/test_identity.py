"""Keys: new each time, in memory only, named by a statement that ends; and their successors, packed for other processes."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from attestation.binding import parse_statement
from enclave_server.engine.flags import answer_flags
from enclave_server.identity import SKEW, ReceiptNumbers, certificate, make_identity, tls_context
from tests.servers import gateway_settings


def test_statement(tmp_path: Path) -> None:
    """The statement is canonical and names model, engine, flags and configuration, for as long as the settings say."""
    settings = gateway_settings(tmp_path, identity_hours=4)
    now = datetime.now(UTC)
    identity = make_identity(settings, engine_version="1.2", now=now)
    statement = parse_statement(identity.statement_bytes)
    assert statement == identity.statement
    assert sha256(identity.statement_bytes).digest() == identity.statement_digest
    assert (statement.engine.version, statement.engine.flags) == ("1.2", answer_flags(settings))
    assert statement.config == settings.digest()
    assert statement.model.digest.hex() == settings.model_digest
    assert statement.not_after == int((now + timedelta(hours=4)).timestamp())
    assert identity.seconds_left(now.timestamp()) == pytest.approx(4 * 3600, abs=2)


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


def test_successor(tmp_path: Path) -> None:
    """A successor says the same of model, engine and configuration, from its own beginning to its own end, with other keys."""
    first = make_identity(gateway_settings(tmp_path), engine_version="1.2")
    now = datetime.now(UTC) + timedelta(hours=3)
    second = first.successor(timedelta(hours=5), now)
    assert second.statement == replace(
        first.statement,
        keys=second.statement.keys,
        not_before=int(now.timestamp()) - SKEW,
        not_after=int((now + timedelta(hours=5)).timestamp()),
    )
    old, new = (set(asdict(identity.statement.keys).values()) for identity in (first, second))
    assert not old & new - {None}
    assert parse_statement(second.statement_bytes) == second.statement


def test_packed(tmp_path: Path) -> None:
    """What is packed in one process is the same identity in another: statement, private keys and certificate."""
    first = make_identity(gateway_settings(tmp_path), engine_version="1.2")
    second = first.successor(timedelta(hours=5), datetime.now(UTC))
    there = first.unpacked(second.pack())
    assert there.statement_bytes == second.statement_bytes
    assert there.pack() == second.pack()
    assert there.keys.receipt.sign(b"x") == second.keys.receipt.sign(b"x")
    assert certificate(there) == certificate(second)


def test_packed_keys_are_in_no_words(tmp_path: Path) -> None:
    """No private key is in what an identity prints of itself, as a traceback or a debugger would show it."""
    identity = make_identity(gateway_settings(tmp_path), engine_version="1")
    shown = repr(identity).encode()
    for key in (identity.keys.pack()[at : at + 32] for at in range(0, 224, 32)):
        assert key.hex().encode() not in shown
        assert repr(key)[2:-1].encode() not in shown
