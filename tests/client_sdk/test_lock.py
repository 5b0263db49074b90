"""`attested lock` and `attested diff`: what an enclave showed becomes a policy, and what changed is told in words."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.policy import Policy, parse_policy
from attestation.references import References, dump_envelope, dump_statement, sign
from attestation.release import Release
from attestation.reviewers import ReferencesPolicy, Reviewer
from client_sdk import load_policy
from client_sdk.evidence_policy import RAW, EvidencePolicy
from client_sdk.exits import ExitCode
from client_sdk.policy_toml import dump_policy
from tests.client_sdk.pretend import POLICY
from tests.client_sdk.test_cli import Done, attested
from tests.client_sdk.test_policy_cli import EXAMPLE
from tests.servers import LiveGateway


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/attested/seen.json"


@pytest.fixture
def policy(tmp_path: Path, gateway: LiveGateway) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    return file


def locked(gateway: LiveGateway, policy: Path, *options: str) -> tuple[Done, Path]:
    out = policy.with_name("attest.lock")
    return attested("lock", gateway.origin, "--policy", str(policy), "-o", str(out), *options), out


def test_a_lock_is_a_policy(gateway: LiveGateway, policy: Path, state: Path) -> None:
    """It pins all that was seen, is in force for its days, accepts the same enclave, and is remembered."""
    done, out = locked(gateway, policy, "--yes", "--days", "3", "--name", "acme", "--machine")
    assert done.returncode == 0, done.stderr
    made = load_policy(out)
    assert made.tdx is not None
    (measurement,) = made.tdx.measurements
    assert None not in (
        measurement.mrtd,
        measurement.rtmr0,
        measurement.rtmr1,
        measurement.rtmr2,
        measurement.rtmr3,
    )
    assert not made.tdx.any_measurement
    assert made.tdx.ppid
    assert made.tdx.min_tcb_evaluation_data_number > 0
    assert made.snp is None
    assert made.release.expires is not None
    assert 2 < (made.release.expires - datetime.now(UTC)).total_seconds() / 86400 <= 3
    assert attested("verify", gateway.origin, "--policy", str(out)).returncode == 0
    assert json.loads(state.read_text())["names"]["acme"]["tcb_evaluation"] > 0


def test_it_says_who_signed(gateway: LiveGateway, policy: Path) -> None:
    """Under a policy of signed references: their name and epoch, and whose signatures hold; shown, and kept in the file."""
    full, now = load_policy(policy), int(datetime.now(UTC).timestamp())
    assert full.tdx is not None
    release = Release(id="1.4", tdx=full.tdx.measurements)
    published = References(name="acme", epoch=7, issued=now, expires=now + 3600, releases=(release,))
    payload, keys = dump_statement(published), [Ed25519PrivateKey.generate() for _ in range(3)]
    (policy.parent / "signed.json").write_bytes(dump_envelope(payload, [sign(payload, k) for k in keys[:2]]))
    pems = [
        k.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for k in keys
    ]
    reviewers = tuple(Reviewer(name=n, key=k) for n, k in zip(("ann", "bob", "eve"), pems, strict=True))
    wanted = ReferencesPolicy(file="signed.json", name="acme", reviewers=reviewers, threshold=2)
    policy.write_text(dump_policy(replace(full, tdx=replace(full.tdx, measurements=()), references=wanted)))
    done, out = locked(gateway, policy, "--yes")
    told = "reference values: 'acme', epoch 7, signed by ann, bob"
    assert (done.returncode, told in done.stdout.splitlines()) == (0, True), done.stderr
    assert f"# By {told}." in out.read_text().splitlines()
    assert attested("verify", gateway.origin, "--policy", str(out)).returncode == 0
    (policy.parent / "signed.json").write_bytes(dump_envelope(payload, [sign(payload, keys[0])]))
    assert locked(gateway, policy, "--yes")[0].returncode == ExitCode.NOT_AUTHENTIC


def test_it_is_shown_before_it_is_written(gateway: LiveGateway, policy: Path) -> None:
    """Without somebody to ask and without --yes nothing is written."""
    done, out = locked(gateway, policy)
    assert done.returncode == ExitCode.USAGE
    assert "mrtd = " in done.stdout
    assert not out.exists()


def test_what_changes_is_shown_before_a_lock_is_replaced(gateway: LiveGateway, policy: Path) -> None:
    """A second lock tells what it demands otherwise than the first one."""
    locked(gateway, policy, "--yes", "--name", "acme")
    done, _ = locked(gateway, policy, "--yes", "--name", "acme", "--machine")
    changes = done.stdout.partition("What changes:")[2]
    assert "+ the platform must be" in changes
    assert "mrtd" not in changes


def test_a_lock_for_programs(gateway: LiveGateway, policy: Path) -> None:
    """--json prints one object and nothing else: what was proven, and what changed."""
    done, out = locked(gateway, policy, "--yes", "--json")
    said = json.loads(done.stdout)
    assert (said["file"], said["changes"]) == (str(out), None)
    assert any(fact.startswith("machine: ") for fact in said["facts"])
    assert json.loads(locked(gateway, policy, "--yes", "--json", "--machine")[0].stdout)["changes"]


def test_an_enclave_that_is_refused_is_not_locked(gateway: LiveGateway, policy: Path) -> None:
    """The vendors' roots alone do not vouch for a simulated enclave: nothing is written, and the check is named."""
    out = policy.with_name("attest.lock")
    done = attested("lock", gateway.origin, "-o", str(out), "--yes", "--no-gpu")
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert "[tdx.root]" in done.stderr
    assert not out.exists()


def test_a_lock_ends(gateway: LiveGateway, policy: Path) -> None:
    """After its days it accepts nothing any more, and says so by name."""
    _, out = locked(gateway, policy, "--yes")
    over = replace(
        load_policy(out), release=replace(load_policy(out).release, expires=datetime(2026, 1, 1, tzinfo=UTC))
    )
    out.write_text(dump_policy(over))
    done = attested("verify", gateway.origin, "--policy", str(out))
    assert done.returncode == ExitCode.POLICY
    assert "[policy.expired]" in done.stdout


@pytest.mark.parametrize(
    "policy",
    [Policy(), POLICY, RAW, parse_policy(EXAMPLE[1] if EXAMPLE else "")],
    ids=["none", "pretended", "raw", "documented"],
)
def test_dumped_policies_read_back_the_same(policy: Policy) -> None:
    """Whatever a policy says, its text says the same."""
    assert (
        parse_policy(dump_policy(policy), EvidencePolicy if isinstance(policy, EvidencePolicy) else Policy)
        == policy
    )


def test_text_is_quoted(tmp_path: Path) -> None:
    """Names with quotes, backslashes and control characters are read back as they were."""
    odd = replace(POLICY, release=replace(POLICY.release, name='a"b\\c\n\x01\x7fü'))
    assert parse_policy(dump_policy(odd)) == odd


def test_differences_in_words(tmp_path: Path) -> None:
    """What is accepted more, less and otherwise, each with the words of `policy explain`; exit code 1."""
    assert POLICY.tdx is not None
    old, new = tmp_path / "old.toml", tmp_path / "new.toml"
    old.write_text(dump_policy(POLICY))
    other = replace(POLICY.tdx, allow_debug=True, min_tcb_evaluation_data_number=21, measurements=())
    new.write_text(dump_policy(replace(POLICY, tdx=other)))
    done = attested("diff", str(old), str(new))
    assert done.returncode == 1
    assert "  + a TD in debug mode is accepted: its host can read its memory  (allow_debug)" in done.stdout
    assert "  - measurements: mrtd=" in done.stdout
    assert "  + Intel's evaluation of TCBs must be number 21 or later" in done.stdout
    same = attested("diff", str(old), str(old), "--json")
    assert (same.returncode, json.loads(same.stdout)) == (0, {"differs": False, "lines": []})
    assert attested("diff", str(old), str(tmp_path / "none")).returncode == ExitCode.UNDECIDED
