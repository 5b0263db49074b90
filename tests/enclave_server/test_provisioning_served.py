"""Secrets in the installed command with two workers: all of them have them, and nothing else does."""

from __future__ import annotations

import json
import os
import signal
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.errors import PolicyError
from client_sdk import load_policy
from client_sdk.cli import app
from enclave_server.settings import Settings
from tests.begun import run
from tests.caller import Caller
from tests.enclave_server.fake_settings import fake_settings
from tests.enclave_server.owner import CHAT, PEPPER, Provision, public_pem, secrets_in, waiting
from tests.enclave_server.test_prefork import workers
from tests.processes import until
from tests.served import Served, everything_written
from tests.servers import gateway_settings


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Served]:
    """`enclave-server serve` with two workers; it is not ready."""
    gateway = Served(
        tmp_path / "gateway",
        {
            **fake_settings(tmp_path),
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
        until(lambda: waiting(gateway))
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait(60)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, bytes]:
    return secrets_in(tmp_path)


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
    key = run(
        *("keys", "create", "it", "--config", str(running.config)),
        *("--pepper", str(tmp_path / "owner/key_pepper")),
        env={**os.environ, "ENCLAVE_ACCESS_DATABASE": values["database_url"].decode().strip()},
    ).stdout.strip()
    running.until_ready(240)
    until(lambda: {ask(running, policy, key) for _ in range(6)} == {200})
    killed = workers(running)[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: killed not in workers(running) and len(workers(running)) == 2)
    until(lambda: {ask(running, policy, key) for _ in range(6)} == {200})

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
    until(lambda: waiting(running))


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
    made = run("keys", "create", "it", "--config", str(config))
    assert (made.returncode, "--pepper" in made.stderr) == (1, True)
