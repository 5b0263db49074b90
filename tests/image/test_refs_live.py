"""Releases end to end: made and signed with `enclave-server refs`, judged by `attested` at a real gateway in a simulated TEE."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from attestation.checks import Check
from attestation.policy import StatementPolicy, parse_policy
from attestation.references import References, dump_references
from attestation.release import Release
from attestation.reviewers import ReferencesPolicy, Reviewer
from attestation.tdx import TdxMeasurement
from client_sdk import OpenAI, load_policy
from client_sdk.exits import ExitCode
from client_sdk.policy_toml import dump_policy
from image.cli import main
from tests.client_sdk.test_cli import attested
from tests.fake_engine import MODEL
from tests.servers import LiveGateway

DAY = 86400
OTHER = Release(id="other", tdx=(TdxMeasurement(mrtd=b"\x01" * 48),))


@dataclass
class World:
    """A gateway, a publisher's folder, and a client whose policy leaves the releases to the publisher's references."""

    gateway: LiveGateway
    folder: Path

    @property
    def policy(self) -> Path:
        return self.folder / "policy.toml"

    def refs(self, *arguments: str) -> None:
        """One step of the publisher's, and the next edition signed."""
        given = [str(self.folder / a) if a.endswith((".json", ".pem")) else a for a in arguments]
        with pytest.raises(SystemExit) as ended:
            main("refs", given)
        assert not ended.value.code

    def reviewer(self, name: str) -> str:
        """A new key in `name`.pem; its public half."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / f"{name}.pem").write_bytes(private)
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, key: str = "key.pem") -> bytes:
        self.refs("sign", "refs.json", "--key", key, "-o", "signed.json")
        return (self.folder / "signed.json").read_bytes()

    def publish(self, references: References) -> bytes:
        (self.folder / "refs.json").write_bytes(dump_references(references))
        return self.sign()

    def refused(self, status: ExitCode, check: Check) -> str:
        """What `attested verify` says when it refuses, by this check alone."""
        done = attested("verify", self.gateway.origin, "--policy", str(self.policy))
        assert done.returncode == status, done.stdout + done.stderr
        assert f"[{check}]" in done.stdout + done.stderr
        return done.stdout + done.stderr

    def accepted(self) -> None:
        done = attested("verify", self.gateway.origin, "--policy", str(self.policy))
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def world(gateway: LiveGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[World, References]:
    """The client's policy names reviewers and no measurement; the first edition accepts what the gateway is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "publisher"
    folder.mkdir()
    here = World(gateway, folder)
    public = here.reviewer("key")
    full = parse_policy(gateway.policy_text)
    assert full.tdx is not None
    wanted = ReferencesPolicy(file="signed.json", name="acme", reviewers=(Reviewer(name="ann", key=public),))
    bare = replace(
        full, tdx=replace(full.tdx, measurements=()), statement=StatementPolicy(), references=wanted
    )
    (folder / "policy.toml").write_text(dump_policy(bare))
    release = Release(
        id="1.4.0",
        tdx=full.tdx.measurements,
        models=full.statement.model_digests,
        configs=full.statement.config_digests,
    )
    now = int(time())
    first = References(name="acme", epoch=1, issued=now, expires=now + 90 * DAY, releases=(release,))
    return here, first


def test_the_life_of_a_release(world: tuple[World, References]) -> None:
    """Accepted; overlapped by a newer one; retired; and the older edition, put back, is refused by what was remembered."""
    here, first = world
    envelope = here.publish(first)
    here.accepted()
    (here.folder / "new.json").write_bytes(dump_references(replace(first, releases=(OTHER,))))
    here.refs("add", "refs.json", "new.json", "--overlap", "7")
    here.sign()
    here.accepted()
    (here.folder / "signed.json").write_bytes(envelope)
    assert "expected epoch 2" in here.refused(ExitCode.NOT_AUTHENTIC, Check.MEMORY_EPOCH)
    here.refs("retire", "refs.json", "1.4.0", "--at", str(int(time()) + 2 * DAY))
    here.sign()
    here.accepted()
    here.refs("retire", "refs.json", "1.4.0")
    here.sign()
    here.refused(ExitCode.POLICY, Check.POLICY_RETIRED)


def test_what_is_revoked_is_refused_at_once(world: tuple[World, References]) -> None:
    """Also where the policy itself names the measurement; the reason is shown."""
    here, first = world
    here.publish(first)
    here.accepted()
    own = replace(parse_policy(here.policy.read_text()), tdx=parse_policy(here.gateway.policy_text).tdx)
    here.policy.write_text(dump_policy(own))
    here.refs("revoke", "refs.json", "1.4.0", "--reason", "CVE-2026-0001")
    here.sign()
    assert "CVE-2026-0001" in here.refused(ExitCode.POLICY, Check.POLICY_REVOKED)


def test_two_of_three_reviewers(world: tuple[World, References]) -> None:
    """One alone accepts and revokes nothing; whichever two have signed, it counts, and each signs what the other has."""
    here, first = world
    reviewers = tuple(Reviewer(name=name, key=here.reviewer(name)) for name in ("ann", "bob", "cat"))
    policy = parse_policy(here.policy.read_text())
    assert policy.references is not None
    wanted = replace(policy.references, reviewers=reviewers, threshold=2)
    here.policy.write_text(dump_policy(replace(policy, references=wanted)))
    (here.folder / "refs.json").write_bytes(dump_references(first))
    here.sign("cat.pem")
    said = here.refused(ExitCode.NOT_AUTHENTIC, Check.REFERENCES_SIGNATURE)
    assert "do not use them" in said
    here.sign("bob.pem")
    here.accepted()
    here.refs("revoke", "refs.json", "1.4.0", "--reason", "CVE-2026-0001")
    here.sign("ann.pem")
    here.refused(ExitCode.NOT_AUTHENTIC, Check.REFERENCES_SIGNATURE)
    here.sign("bob.pem")
    assert "CVE-2026-0001" in here.refused(ExitCode.POLICY, Check.POLICY_REVOKED)


def test_limits(world: tuple[World, References]) -> None:
    """A release that has ended, one for other machines, references that are over, and altered ones, each by name."""
    here, first = world
    (release,) = first.releases
    ended = replace(first, releases=(replace(release, until=int(time()) - 1),))
    here.publish(ended)
    assert "which was retired at" in here.refused(ExitCode.POLICY, Check.POLICY_RETIRED)
    elsewhere = replace(first, epoch=2, releases=(OTHER,))
    (here.folder / "new.json").write_bytes(
        dump_references(replace(first, releases=(replace(release, id="1.4.1"),)))
    )
    here.publish(elsewhere)
    here.refs("add", "refs.json", "new.json", "--ppid", "00" * 16)
    envelope = here.sign()
    here.refused(ExitCode.POLICY, Check.POLICY_MACHINE)
    (here.folder / "signed.json").write_bytes(envelope.replace(b'"sig": "', b'"sig": "AAAA'))
    here.refused(ExitCode.NOT_AUTHENTIC, Check.REFERENCES_SIGNATURE)


def test_references_that_are_over(world: tuple[World, References], monkeypatch: pytest.MonkeyPatch) -> None:
    """They accept nothing any more, though nobody revoked anything."""
    here, first = world
    now = int(time())
    monkeypatch.setattr("image.refs_cli.time", lambda: now - 10)
    here.publish(replace(first, expires=now - 1))
    here.refused(ExitCode.POLICY, Check.POLICY_EXPIRED)


def test_a_lock_under_references(world: tuple[World, References]) -> None:
    """It pins what is there and keeps the release's end, though it knows no reviewer any more."""
    here, first = world
    (release,) = first.releases
    until = int(time()) + DAY
    here.publish(replace(first, epoch=5, releases=(replace(release, until=until), OTHER)))
    out = here.folder / "attest.lock"
    done = attested("lock", here.gateway.origin, "--policy", str(here.policy), "-o", str(out), "--yes")
    assert done.returncode == 0, done.stderr
    locked = load_policy(out)
    assert locked.references is None
    assert [(bound.id, bound.until) for bound in locked.release.limited] == [
        ("1.4.0", datetime.fromtimestamp(until, UTC))
    ]
    assert locked.release.epoch == 5
    assert locked.tdx is not None
    assert [m.mrtd for m in locked.tdx.measurements] == [release.tdx[0].mrtd]
    assert attested("verify", here.gateway.origin, "--policy", str(out)).returncode == 0
    ended = replace(locked.release.limited[0], until=datetime.now(UTC) - timedelta(seconds=1))
    out.write_text(dump_policy(replace(locked, release=replace(locked.release, limited=(ended,)))))
    assert "[policy.retired]" in attested("verify", here.gateway.origin, "--policy", str(out)).stdout


def test_a_verdict_ends_with_its_release(world: tuple[World, References]) -> None:
    """A client that was verified before does not go on past the end: its verdict says when."""
    here, first = world
    (release,) = first.releases
    until = int(time()) + 300
    here.publish(replace(first, releases=(replace(release, until=until),)))
    with OpenAI(base_url=here.gateway.origin + "/v1", policy=str(here.policy), api_key="none") as client:
        answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hello"}])
        assert answer.attestation.verdict.valid_until == datetime.fromtimestamp(until, UTC)  # type: ignore[attr-defined]
