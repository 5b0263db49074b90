"""A gateway that waits for its owner: what it does before, whose secrets it takes, and that they are nowhere else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner, Result

from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.errors import PolicyError, VerificationError
from attestation.provisioning import MAX_MESSAGE_BYTES, MEDIA_TYPE, PATH, seal_secrets
from client_sdk import load_policy
from client_sdk.cli import app
from enclave_server.access.store import Store
from enclave_server.provisioning import Secrets, check_values
from enclave_server.settings import Settings
from tests.caller import Caller, untrusting
from tests.enclave_server.fake_vllm import fake_python
from tests.enclave_server.test_prefork import workers
from tests.processes import until
from tests.served import COMMAND, Served, everything_written, model_settings
from tests.servers import FakeEngine, LiveGateway, gateway_settings, live_gateway

OWNER = Ed25519PrivateKey.from_private_bytes(b"owner".ljust(32))
PEPPER = b"a pepper that must be seen nowhere at all"
CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "hello"}]}


def public_pem(key: Ed25519PrivateKey = OWNER) -> str:
    encoding = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*encoding).decode()


def private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


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
    return {"database_url": f"sqlite:///{tmp_path}/owner.db\n".encode(), "key_pepper": PEPPER}


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


def ready(origin: str) -> Any:
    return httpx.get(f"{origin}/readyz", verify=untrusting(), trust_env=False).json()["reason"]


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
    until(lambda: ready(gateway.origin) is None, 10)
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
    assert post(origin, message(gateway, values, late=-302)) == "secret_time"
    assert post(origin, message(gateway, {"key_pepper": PEPPER})) == "secret_name"
    assert post(origin, message(gateway, {**values, "more": b""})) == "secret_name"
    assert post(origin, message(gateway, {**values, "key_pepper": b"short"})) == "secret_value"
    assert post(origin, message(gateway, {**values, "database_url": b"mysql://db/x"})) == "secret_value"
    assert post(origin, b"") == "secret_format"
    altered = message(gateway, values)[:-1] + b"\0"
    assert post(origin, altered) == "sealed_open"
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


# ------------------------------------------------------------------------------------------- the owner's command


class Provision:
    """`attested provision` with its files."""

    def __init__(self, folder: Path, policy: str, values: dict[str, bytes]) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "policy.toml").write_text(policy)
        (folder / "owner.pem").write_bytes(private_pem(OWNER))
        for name, value in values.items():
            (folder / name).write_bytes(value)
        self._names = list(values)

    def __call__(self, origin: str, *more: str, **files: str) -> Result:
        at = {"policy": "policy.toml", "key": "owner.pem"} | files
        arguments = [
            word for option, name in at.items() for word in (f"--{option}", str(self._folder / name))
        ]
        for name in self._names:
            arguments += ["--secret", f"{name}={self._folder / name}"]
        return CliRunner().invoke(app, ["provision", origin, *arguments, *more])


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


# ------------------------------------------------------------------------------------- the installed command, two workers


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Served]:
    """`enclave-server serve` with two workers; it is not ready."""
    model, folder = tmp_path / "model", tmp_path / "gateway"
    model.mkdir()
    folder.mkdir()
    (model / "config.json").write_text("{}")
    gateway = Served(
        folder,
        {
            **model_settings(model, "fake-model"),
            "engine_python": str(fake_python(tmp_path / "python")),
            "drain_seconds": 3,
            "workers": 2,
            "evidence_per_second": 1000,
            "evidence_burst": 10000,
            "access": "keys",
            "owner_key": public_pem(),
            "secrets": ["database_url", "key_pepper"],
        },
    )
    gateway.start()
    try:
        until(lambda: waiting(gateway), 30)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait(10)


def waiting(gateway: Served) -> bool:
    try:
        return not gateway.ready() and ready(gateway.origin) == "secrets_missing"
    except httpx.TransportError:
        return False


def ask(gateway: Served, policy: str, key: str) -> int:
    """Over a connection of its own, so that all workers get some."""
    with Caller(gateway.origin, policy) as caller:
        return caller.post("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {key}"}).status


def test_all_workers_have_them_and_nothing_else_does(
    running: Served, tmp_path: Path, values: dict[str, bytes]
) -> None:
    """Given once through the real command: both workers serve, and so does one that takes another's place; the evidence shows
    the digest; no file and no log line holds a secret; and after a restart it waits again."""
    policy = running.policy()
    provision = Provision(tmp_path / "owner", policy, values)
    result = provision(running.origin, "--json")
    assert result.exit_code == 0, result.output
    key = subprocess.run(
        [
            *COMMAND,
            "keys",
            "create",
            "it",
            "--config",
            running.config,
            "--pepper",
            tmp_path / "owner/key_pepper",
        ],
        env={**os.environ, "ENCLAVE_ACCESS_DATABASE": values["database_url"].decode().strip()},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()
    running.until_ready(20)
    until(lambda: {ask(running, policy, key) for _ in range(6)} == {200}, 20)
    killed = workers(running)[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in workers(running) and len(workers(running)) == 2, 20)
    until(lambda: {ask(running, policy, key) for _ in range(6)} == {200}, 20)

    digest = json.loads(result.stdout)["digest"]
    with Caller(running.origin, policy) as caller:
        assert caller.verdict.statement.secrets == bytes.fromhex(digest)
        assert parse_statement(caller.verdict.statement.to_bytes()) == caller.verdict.statement
        pins = policy + 'secrets_digests = ["{}"]\n'
        caller.verify(pins.format(digest))
        with pytest.raises(PolicyError, match=r"policy\.secrets"):
            caller.verify(pins.format("00" * 32))
    (tmp_path / "owner/pins.toml").write_text(pins.format(digest))
    assert digest in provision(running.origin, policy="pins.toml").stdout  # the same again
    locked = ["lock", running.origin, "--policy", f"{tmp_path}/owner/policy.toml", "-o", f"{tmp_path}/a.lock"]
    assert CliRunner().invoke(app, [*locked, "--yes"]).exit_code == 0
    assert load_policy(tmp_path / "a.lock").statement.secrets_digests == {bytes.fromhex(digest)}
    (tmp_path / "owner/key_pepper").write_bytes(PEPPER * 2)
    assert Check.SECRET_AGAIN in provision(running.origin).stderr

    written = everything_written(running.folder)
    for secret in values.values():
        for form in (secret.strip(), b64encode(secret.strip())[:40], secret.strip().hex().encode()):
            assert form not in written
    assert running.terminate() == 0
    running.start()
    until(lambda: waiting(running), 30)


def test_keys_are_made_with_the_pepper(tmp_path: Path) -> None:
    """`keys create` for such a gateway wants the pepper, so that no key is made that would never work."""
    settings = gateway_settings(tmp_path)
    config = tmp_path / "enclave.toml"
    lines = {
        "model_dir": str(settings.model_dir),
        "model_name": settings.model_name,
        "model_digest": settings.model_digest,
        "tee": "simulated-tdx",
        "engine_python": "/nonexistent/python",
        "access_database": settings.access_database,
        "owner_key": public_pem(),
        "secrets": ["key_pepper"],
    }
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items()))
    assert isinstance(Settings.load(config), Settings)
    made = subprocess.run(
        [*COMMAND, "keys", "create", "it", "--config", config], capture_output=True, text=True, check=False
    )
    assert (made.returncode, "--pepper" in made.stderr) == (1, True)
