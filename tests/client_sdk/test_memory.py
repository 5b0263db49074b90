"""What was seen is remembered: no way back to an older epoch or an older evaluation, across processes and policies."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.policy import Policy
from attestation.release_policy import ReleasePolicy
from attestation.verdict import Verdict
from attestation.verify import verify
from client_sdk.memory import Memory
from client_sdk.policy_toml import dump_policy
from client_sdk.terms import Terms, load_policy
from tests.attestation.test_references import BARE, DEMANDED, REFERENCES, signed
from tests.client_sdk.pretend import NOW, POLICY, PretendEnclave

ROOT = Path(__file__).resolve().parent.parent.parent
NONCE = b"\x05" * 32


def named(epoch: int, policy: Policy = POLICY) -> Policy:
    return replace(policy, release=ReleasePolicy(name="acme", epoch=epoch))


def verdict(policy: Policy = POLICY) -> Verdict:
    return verify(PretendEnclave().evidence(NONCE), policy, nonce=NONCE, now=NOW)


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "state/seen.json")


def test_an_older_epoch_is_refused(memory: Memory) -> None:
    """Once epoch 7 was accepted, 6 is refused under the same name, and 7 and 8 are not."""
    memory.remember(memory.apply(named(7)), verdict())
    with pytest.raises(VerificationError) as error:
        memory.apply(named(6))
    assert error.value.check is Check.MEMORY_EPOCH
    for epoch in (7, 8):
        assert memory.apply(named(epoch)).release.epoch == epoch
    other = replace(named(0), release=ReleasePolicy(name="other"))
    assert memory.apply(other) == other


def test_an_older_evaluation_is_refused(memory: Memory) -> None:
    """Intel's list of known holes does not get shorter again: the number that was seen is the floor of the next verdict."""
    found = verdict()
    memory.remember(named(1), found)
    applied = memory.apply(named(1))
    assert applied.tdx is not None
    assert applied.tdx.min_tcb_evaluation_data_number == found.cpu.tcb_evaluation_data_number  # type: ignore[union-attr]


def test_nothing_is_remembered_without_a_name(memory: Memory) -> None:
    """A policy without a name neither reads nor writes the file."""
    assert memory.apply(POLICY) is POLICY
    memory.remember(POLICY, verdict())
    assert not memory.path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"v":2,"names":{}}', '{"v":1,"names":{"acme":{"epoch":"7"}}}']
)
def test_a_broken_file_is_no_fresh_start(memory: Memory, text: str) -> None:
    """Who can spoil the file cannot lead back to an older release with it."""
    memory.path.parent.mkdir(parents=True)
    memory.path.write_text(text)
    with pytest.raises(MalformedError) as error:
        memory.apply(named(9))
    assert error.value.check is Check.MEMORY_STATE


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """What cannot be remembered is not accepted: the question stays open."""
    (tmp_path / "file").write_text("")
    memory = Memory(tmp_path / "file/seen.json")
    with pytest.raises(AttestationError) as error:
        memory.remember(named(1), verdict())
    assert isinstance(error.value, UnavailableError)
    assert error.value.check is Check.MEMORY_STATE


WRITERS = """
import os, sys
from pathlib import Path
from tests.client_sdk.test_memory import Memory, named, verdict

def remember(epoch):
    if not (child := os.fork()):
        Memory(Path(sys.argv[1])).remember(named(epoch), verdict())
        os._exit(0)
    return child

for child in [remember(epoch) for epoch in range(1, 9)]:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_processes_that_write_at_once(memory: Memory) -> None:
    """The highest number stays, whoever writes last."""
    subprocess.run([sys.executable, "-c", WRITERS, memory.path], cwd=ROOT, check=True, timeout=240)
    assert json.loads(memory.path.read_text())["names"]["acme"]["epoch"] == 8
    assert [p.name for p in memory.path.parent.iterdir() if p.suffix == ".new"] == []


def test_terms_are_read_again(tmp_path: Path, memory: Memory) -> None:
    """Newer references beside the policy count from the next attestation on; older ones are refused by name."""
    file, references = tmp_path / "policy.toml", tmp_path / DEMANDED.file
    file.write_text(dump_policy(BARE))
    references.write_bytes(signed())
    terms = Terms(file, memory)
    policy = terms.policy()
    terms.accepted(policy, verdict(policy))
    references.write_bytes(signed(replace(REFERENCES, epoch=8, releases=())))
    assert terms.policy().release.epoch == 8
    references.write_bytes(signed(replace(REFERENCES, epoch=6)))
    with pytest.raises(VerificationError) as error:
        terms.policy()
    assert error.value.check is Check.MEMORY_EPOCH


def test_references_that_are_not_there(tmp_path: Path) -> None:
    """A policy whose references cannot be read decides nothing."""
    file = tmp_path / "policy.toml"
    file.write_text(dump_policy(BARE))
    with pytest.raises(UnavailableError) as error:
        load_policy(file)
    assert error.value.check is Check.REFERENCES_MISSING
