"""A gateway that waits for its owner: what it does before, whose secrets it takes, and that they are nowhere else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.provisioning import MAX_MESSAGE_BYTES, MEDIA_TYPE, PATH, seal_secrets
from enclave_server.access.store import Store
from enclave_server.provisioning import Secrets, check_values
from tests.caller import Caller, untrusting
from tests.enclave_server.owner import (
    CHAT,
    OWNER,
    PEPPER,
    Provision,
    private_pem,
    public_pem,
    ready,
    secrets_in,
)
from tests.processes import until
from tests.servers import FakeEngine, LiveGateway, gateway_settings, live_gateway

# ---------------------------------------------------------------------------------------- one process, every refusal


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine) -> Iterator[LiveGateway]:
    """The real gateway; it waits for a pepper and the address of its database."""
    names = ("database_url", "key_pepper")
    with live_gateway(
        tmp_path, engine=engine, access="keys", owner_key=public_pem(), secrets=names
    ) as running:
        yield running


@pytest.fixture
def values(tmp_path: Path) -> dict[str, bytes]:
    return secrets_in(tmp_path)


def message(
    gateway: LiveGateway,
    values: dict[str, bytes],
    *,
    owner: Ed25519PrivateKey = OWNER,
    statement: bytes | None = None,
    late: float = 0,
) -> bytes:
    identity = gateway.identity
    now = datetime.now(UTC) - timedelta(seconds=late)
    digest = statement or identity.statement_digest
    return seal_secrets(values, owner=owner, keys=identity.statement.keys, statement=digest, now=now)[0]


def post(origin: str, data: bytes, content_type: str = MEDIA_TYPE) -> str:
    """The error's code; nothing when they were taken."""
    answer = httpx.post(
        origin + PATH,
        content=data,
        headers={"Content-Type": content_type},
        verify=untrusting(),
        trust_env=False,
    )
    assert (answer.status_code == 204) == (not answer.content)
    return answer.json()["error"]["code"] if answer.content else ""


def test_nobody_is_answered_before(gateway: LiveGateway, engine: FakeEngine) -> None:
    """Not ready, and every request gets a signed error; the engine sees none of them."""
    assert ready(gateway.origin) == "secrets_missing"
    with Caller(gateway.origin, gateway.policy_text) as caller:
        answer = caller.post("/v1/chat/completions", CHAT, {"Authorization": "Bearer sk-enclave-any"})
    assert (answer.status, answer.error) == (503, "secrets_missing")
    assert not engine.requests


def test_served_with_a_key_of_the_owners_database(gateway: LiveGateway, values: dict[str, bytes]) -> None:
    """The keys in the database that the owner named work, digested under the owner's pepper; others do not."""
    store = Store(values["database_url"].decode().strip())
    store.migrate()
    _, good = store.create("good", pepper=PEPPER)
    _, plain = store.create("written by somebody without the pepper")
    store.close()
    assert not post(gateway.origin, message(gateway, values))
    until(lambda: ready(gateway.origin) is None)
    with Caller(gateway.origin, gateway.policy_text) as caller:
        for key, status in ((good, 200), (plain, 401)):
            answer = caller.post("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {key}"})
            assert answer.status == status


def test_refused_by_name(gateway: LiveGateway, values: dict[str, bytes]) -> None:
    """Another owner, another statement, another time, other names and values that are none: nothing is taken."""
    other = Ed25519PrivateKey.generate()
    origin = gateway.origin
    assert post(origin, message(gateway, values, owner=other)) == "secret_signature"
    assert post(origin, message(gateway, values, statement=bytes(32))) == "secret_statement"
    assert post(origin, message(gateway, values, late=301)) == "secret_time"
    assert post(origin, message(gateway, values, late=-600)) == "secret_time"
    assert post(origin, message(gateway, {"key_pepper": PEPPER})) == "secret_name"
    assert post(origin, message(gateway, {**values, "more": b""})) == "secret_name"
    assert post(origin, message(gateway, {**values, "key_pepper": b"short"})) == "secret_value"
    assert post(origin, message(gateway, {**values, "database_url": b"mysql://db/x"})) == "secret_value"
    assert post(origin, b"") == "secret_format"
    altered = bytearray(message(gateway, values))
    altered[-1] ^= 1
    assert post(origin, bytes(altered)) == "sealed_open"
    assert post(origin, message(gateway, values), "application/json") == "unsupported_media_type"
    assert post(origin, bytes(MAX_MESSAGE_BYTES + 1)) == "request_too_large"
    assert ready(origin) == "secrets_missing"


def test_taken_once(gateway: LiveGateway, values: dict[str, bytes]) -> None:
    """The same again changes nothing; other secrets of the same owner are refused."""
    assert not post(gateway.origin, message(gateway, values))
    assert not post(gateway.origin, message(gateway, values))
    assert post(gateway.origin, message(gateway, {**values, "key_pepper": PEPPER * 2})) == "secret_again"


def test_another_boot_is_given_them_again(gateway: LiveGateway, values: dict[str, bytes]) -> None:
    """After a restart it waits, and what was recorded on the way to the boot before is for another statement."""
    recorded = message(gateway, values)
    assert not post(gateway.origin, recorded)
    gateway.restart()
    assert ready(gateway.origin) == "secrets_missing"
    assert post(gateway.origin, recorded) == "secret_statement"


def test_no_route_where_none_are_awaited(tmp_path: Path, engine: FakeEngine) -> None:
    """A gateway whose settings list no secrets takes none."""
    with live_gateway(tmp_path, engine=engine) as gateway:
        assert post(gateway.origin, b"") == "not_found"


@pytest.mark.parametrize(
    "values",
    [
        {"database_url": b""},
        {"database_url": b"\xff"},
        {"database_url": b"postgresql://enclave@db:port/enclave"},
        {"key_pepper": bytes(31)},
    ],
)
def test_values_have_to_be_of_use(values: dict[str, bytes]) -> None:
    """What could not be used later is refused when it comes, without a word of it."""
    with pytest.raises(VerificationError) as error:
        check_values(values)
    assert error.value.check is Check.SECRET_VALUE
    assert "enclave@db" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"secrets": ("key_pepper",)},
        {"owner_key": public_pem()},
        {"owner_key": "no key", "secrets": ("key_pepper",)},
        {"owner_key": public_pem(), "secrets": ("key_pepper", "key_pepper")},
        {"owner_key": public_pem(), "secrets": ("unknown",)},
        {"owner_key": public_pem(), "secrets": ("key_pepper",), "access": "open"},
    ],
)
def test_settings_fit_together(tmp_path: Path, changes: dict[str, Any]) -> None:
    """An owner without secrets, secrets without an owner, or names that nothing uses do not start."""
    with pytest.raises(ValueError, match=r"secrets|owner_key"):
        gateway_settings(tmp_path, **{"access": "keys", **changes})


def test_dropped(tmp_path: Path) -> None:
    """A process that answers nobody has nothing to read any more."""
    settings = gateway_settings(tmp_path, access="keys", owner_key=public_pem(), secrets=("key_pepper",))
    secrets = Secrets(settings)
    secrets.drop()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(secrets._file)


@pytest.fixture
def provision(tmp_path: Path, gateway: LiveGateway, values: dict[str, bytes]) -> Provision:
    return Provision(tmp_path / "owner", gateway.policy_text, values)


def test_nothing_is_sent_to_what_the_policy_refuses(
    gateway: LiveGateway, provision: Provision, tmp_path: Path
) -> None:
    """An enclave with another model is not given the secrets."""
    policy = gateway.policy_text.replace(gateway.settings.model_digest, "00" * 32)
    (tmp_path / "owner" / "other.toml").write_text(policy)
    result = provision(gateway.origin, policy="other.toml")
    assert (result.exit_code, "policy.model" in result.stderr) == (4, True)
    assert ready(gateway.origin) == "secrets_missing"


def test_the_command_says_why_it_was_refused(
    gateway: LiveGateway, provision: Provision, tmp_path: Path
) -> None:
    """The gateway's refusal has its check's name, what to do, and an exit code."""
    (tmp_path / "owner" / "other.pem").write_bytes(private_pem(Ed25519PrivateKey.generate()))
    result = provision(gateway.origin, "--json", key="other.pem")
    assert (result.exit_code, json.loads(result.stdout.splitlines()[-1])["check"]) == (3, "secret.signature")


def test_the_command_believes_only_evidence(gateway: LiveGateway, provision: Provision) -> None:
    """That they were taken is shown by a statement; here none comes, and then one with others."""
    result = provision(gateway.origin, "--wait", "0")
    assert (result.exit_code, Check.SECRET_SHOWN in result.stderr) == (5, True)
    identities = gateway.identities
    identities.add(identities.current.successor(timedelta(days=8), datetime.now(UTC), bytes(32)))
    identities.take_over()
    result = provision(gateway.origin)
    assert (result.exit_code, Check.SECRET_SHOWN in result.stderr) == (3, True)


def test_only_pinned_secrets_are_given(gateway: LiveGateway, provision: Provision, tmp_path: Path) -> None:
    """A policy that pins other secrets than these: nothing is sent. It is not asked of an enclave that still waits."""
    (tmp_path / "owner/pins.toml").write_text(gateway.policy_text + f'secrets_digests = ["{"00" * 32}"]\n')
    result = provision(gateway.origin, policy="pins.toml")
    assert (result.exit_code, Check.POLICY_SECRETS in result.stderr) == (4, True)
    assert ready(gateway.origin) == "secrets_missing"


@pytest.mark.parametrize("wrong", ["key_pepper", "=file", "key_pepper=", "key_pepper=/nonexistent"])
def test_files_that_are_none(gateway: LiveGateway, provision: Provision, wrong: str) -> None:
    """Wrong usage is said before anybody is asked."""
    assert provision(gateway.origin, "--secret", wrong).exit_code in {5, 64}
    assert provision(gateway.origin, key="policy.toml").exit_code == 64
