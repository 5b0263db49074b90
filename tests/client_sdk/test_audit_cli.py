"""`attested audit`: bundles of files and folders, exact exit codes, a summary for people and for programs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from attestation.bundle import Bundle, SavedExchange, dump_bundle
from attestation.policy import parse_policy
from client_sdk.audit_work import Refused
from client_sdk.commands import audit as audit_command
from client_sdk.commands.audit import gravest
from client_sdk.exits import ExitCode
from tests.client_sdk.pretend import ANSWER, NOW, POLICY, PretendEnclave
from tests.client_sdk.test_cli import Done, attested

ENCLAVE = PretendEnclave()
EXCHANGE = ENCLAVE.exchange()
EVIDENCE = ENCLAVE.document(b"\x09" * 32)


def bundle_of(count: int = 1) -> Bundle:
    start = int(NOW.timestamp())
    exchanges = tuple(
        SavedExchange(
            receipt=ENCLAVE.receipt(EXCHANGE, ANSWER, time=start + i, id=f"r-{i}"),
            nonce=EXCHANGE.nonce,
            request=EXCHANGE.body,
            response=ANSWER,
        )
        for i in range(count)
    )
    return Bundle(evidence=EVIDENCE, nonce=b"\x09" * 32, exchanges=exchanges)


GOOD = bundle_of()


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that accepts the pretended enclave; its simulator's root is known to this process alone."""
    file = tmp_path / "policy.toml"
    file.write_text("")
    monkeypatch.setattr(
        audit_command, "load_policy", lambda path: POLICY if path == file else parse_policy("x")
    )
    return file


def audited(path: Path, policy: Path, *options: str) -> Done:
    return attested("audit", str(path), "--policy", str(policy), *options)


AUDIT = """
import pickle
from client_sdk.cli import main
from client_sdk.commands import audit
audit.load_policy = lambda path: pickle.loads(path.read_bytes())
main()
"""


def audited_by(jobs: int, path: Path, policy: Path, *options: str) -> Done:
    """With so many processes. Several are forks, and not of the process of the tests with its threads."""
    if jobs == 1:
        return audited(path, policy, "--jobs", "1", *options)
    policy.write_bytes(pickle.dumps(POLICY))
    command = [sys.executable, "-c", AUDIT, "audit", str(path), "--policy", str(policy), "--jobs", str(jobs)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_good_bundle_is_accepted(tmp_path: Path, policy: Path) -> None:
    """One calm line, and that the TEE is simulated."""
    (tmp_path / "b.json").write_bytes(dump_bundle(GOOD))
    done = audited(tmp_path / "b.json", policy)
    assert done.returncode == 0
    assert done.stdout.startswith("ACCEPTED  1 of 1 exchanges hold")
    assert "SIMULATED" in done.stdout


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_folder_is_audited_by_many_processes(tmp_path: Path, policy: Path, jobs: int) -> None:
    """Whatever the number of processes: the same summary, with each file that does not hold."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for i in range(70):
        (folder / f"{i:03}.json").write_bytes(dump_bundle(GOOD))
    changed = replace(GOOD, exchanges=(replace(GOOD.exchanges[0], response=b"else"),))
    (folder / "100.json").write_bytes(dump_bundle(changed))
    (folder / "101.json").write_bytes(b"{}")
    (folder / "102.json").mkdir()
    done = audited_by(jobs, folder, policy, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert (found["verdict"], found["exchanges"], found["held"]) == ("refuse", 73, 70)
    assert [row["check"] for row in found["refused"]] == ["receipt.response", *["bundle.format"] * 2]


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_file_of_many_exchanges(tmp_path: Path, policy: Path, jobs: int) -> None:
    """Exchanges of one file are shared out too, and keep their numbers."""
    many = bundle_of(600)
    broken = replace(many.exchanges[555], request=b"else")
    many = replace(many, exchanges=(*many.exchanges[:555], broken, *many.exchanges[556:]))
    (tmp_path / "b.json").write_bytes(dump_bundle(many))
    done = audited_by(jobs, tmp_path / "b.json", policy)
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert "599 of 600" in done.stdout
    assert "exchange 555: [receipt.request]" in done.stdout


def test_at_another_time_and_today(tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expired collateral is a refusal at `--at`, and a remark today."""
    (tmp_path / "b.json").write_bytes(dump_bundle(GOOD))
    later = NOW + timedelta(days=4000)
    done = audited(tmp_path / "b.json", policy, "--at", later.isoformat())
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert "[tdx." in done.stdout

    class Clock:
        times = iter([NOW, later])
        now = staticmethod(lambda _: next(Clock.times))

    monkeypatch.setattr(audit_command, "datetime", Clock)
    for remark in (False, True):
        done = audited(tmp_path / "b.json", policy)
        assert done.returncode == 0
        assert ("today: the evidence would be refused: [tdx." in done.stdout) is remark


def test_what_cannot_be_read(tmp_path: Path, policy: Path) -> None:
    """No file leaves the question open; an empty folder and no policy are wrong usage; digests alone are called that."""
    assert audited(tmp_path / "none", policy).returncode == ExitCode.UNDECIDED
    (tmp_path / "empty").mkdir()
    assert audited(tmp_path / "empty", policy).returncode == ExitCode.USAGE
    (tmp_path / "b.json").write_bytes(b"nothing")
    assert audited(tmp_path / "b.json", policy).returncode == ExitCode.MALFORMED
    bare = replace(GOOD, exchanges=(replace(GOOD.exchanges[0], request=None),))
    (tmp_path / "b.json").write_bytes(dump_bundle(bare))
    assert "1 were saved without all of their bytes" in audited(tmp_path / "b.json", policy).stdout


def test_the_gravest_outcome_is_the_exit_code() -> None:
    """Not authentic before malformed, refused and undecided."""
    codes = [ExitCode.UNDECIDED, ExitCode.POLICY, ExitCode.MALFORMED, ExitCode.NOT_AUTHENTIC]
    refused = [Refused(file="", exchange=0, code=code, check="", detail="") for code in codes]
    for number, code in enumerate(codes):
        assert gravest(refused[: number + 1]) is code
    assert gravest([]) is ExitCode.ACCEPT
