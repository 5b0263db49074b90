"""`attested log`, and what audits say of the log: with the real gateway, and with logs that lie."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.audit import audit
from attestation.binding import parse_statement
from attestation.bundle import dump_bundle, parse_bundle
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.evidence import parse_evidence
from attestation.policy import parse_policy
from attestation.tlog import Checkpoint, Tree, VerifierKey, log_origin, receipt_entry, sign_checkpoint
from attestation.tlog.note import KeyKind
from client_sdk.files import one_at_a_time
from client_sdk.log_client import LogClient, visit
from client_sdk.transport import attested_transport
from enclave_server.receipts.store import DiskLog, begin_log, read_file
from tests.client_sdk.test_cli import attested
from tests.servers import FakeEngine, LiveGateway, live_gateway

ENTRIES = [receipt_entry(str(i)) for i in range(1000)]


class Logs:
    """A gateway's logs on disk, boot after boot, as a client reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: DiskLog
        self.boot()

    def boot(self) -> None:
        self.store = begin_log(self.folder, Ed25519PrivateKey.generate())

    @property
    def head(self) -> bytes:
        return self.fetch(self.store.key, "checkpoint") or b""

    def fetch(self, key: VerifierKey, path: str) -> bytes | None:
        return read_file(self.folder / key.key.hex(), path)

    def visit(self, seen: bytes | None = None) -> Any:
        return visit(self.fetch, self.store.key, seen)


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def refused(logs: Logs, seen: bytes) -> Check:
    with pytest.raises(AttestationError) as error:
        logs.visit(seen)
    return error.value.check


def test_a_log_that_only_grows(logs: Logs) -> None:
    """Every later visit finds what was seen before, within a boot and over several."""
    assert logs.visit().before is None
    seen = [logs.head]
    for size in (1, 5, 300):
        logs.store.append(ENTRIES[:size])
        assert all(logs.visit(head).boots == 0 for head in seen)
        seen.append(logs.head)
    logs.boot()
    assert [logs.visit(head).boots for head in seen] == [1] * 4
    logs.boot()
    logs.store.append(ENTRIES[:3])
    assert [logs.visit(head).boots for head in seen] == [2] * 4
    assert logs.visit(logs.head).boots == 0


def test_a_log_that_was_rolled_back(logs: Logs, tmp_path: Path) -> None:
    """A smaller log than was seen, within a boot or as the end of an earlier one."""
    logs.store.append(ENTRIES[:5])
    older = tmp_path / "older"
    shutil.copytree(logs.store.folder, older)
    logs.store.append(ENTRIES[5:9])
    seen = logs.head
    shutil.rmtree(logs.store.folder)
    older.rename(logs.store.folder)
    assert refused(logs, seen) is Check.LOG_CONSISTENCY
    logs.boot()
    assert refused(logs, seen) is Check.LOG_CONSISTENCY


def signed(logs: Logs, entries: list[bytes]) -> bytes:
    """Another history under the very key of the log, and put in its place."""
    tree, files = Tree().extend(entries)
    head = Checkpoint(origin=logs.store.key.name, size=tree.size, root=tree.root)
    for path, data in {**files, "checkpoint": sign_checkpoint(head, logs.store._private)}.items():
        target = logs.store.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return sign_checkpoint(head, logs.store._private)


@pytest.mark.parametrize("size", [4, 9, 300])
def test_two_histories_under_one_key(logs: Logs, size: int) -> None:
    """A split view is seen by whoever has both heads, of whatever size: smaller, the same or larger."""
    logs.store.append(ENTRIES[:8])
    seen = logs.head
    signed(logs, [b"another", *ENTRIES[1:size]])
    assert refused(logs, seen) is Check.LOG_CONSISTENCY


def test_a_log_that_was_put_aside(logs: Logs) -> None:
    """A gateway that was started with an empty directory does not follow the log that was seen."""
    logs.store.append(ENTRIES[:8])
    seen = logs.head
    (logs.folder / "latest").unlink()
    shutil.rmtree(logs.store.folder)
    logs.boot()
    assert refused(logs, seen) is Check.LOG_PREDECESSOR


def test_another_end_of_the_log_before(logs: Logs) -> None:
    """What is served as the end of the log before must be what the first entry commits to."""
    logs.store.append(ENTRIES[:8])
    seen, old = logs.head, logs.store
    logs.boot()
    new, logs.store = logs.store, old
    other = signed(logs, [b"another"])
    logs.store = new
    (new.folder / "previous").write_bytes(other)
    assert refused(logs, seen) is Check.LOG_PREDECESSOR


def test_a_log_that_hides(logs: Logs) -> None:
    """Without a checkpoint or a tile nothing is decided, and nothing passes."""
    logs.store.append(ENTRIES[:8])
    seen = logs.head
    logs.store.append(ENTRIES[8:12])
    shutil.rmtree(logs.store.folder / "tile")
    assert refused(logs, seen) is Check.LOG_FETCH
    (logs.store.folder / "checkpoint").unlink()
    assert refused(logs, seen) is Check.LOG_FETCH


@pytest.fixture
def gateway(tmp_path: Path, engine: FakeEngine) -> Iterator[LiveGateway]:
    with live_gateway(tmp_path, engine=engine, log_dir=tmp_path / "log", log_seconds=0.05) as running:
        (tmp_path / "policy.toml").write_text(running.policy_text)
        yield running


def check(gateway: LiveGateway, folder: Path, *more: str) -> Any:
    arguments = ["--policy", str(folder / "policy.toml"), "--state", str(folder / "state.json"), "--json"]
    done = attested("log", "check", gateway.origin, *arguments, *more)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_visits(gateway: LiveGateway, tmp_path: Path) -> None:
    """The first is remembered, the next ones compare, over a restart too; a log that was rolled back is refused, with exit code 3."""
    code, first = check(gateway, tmp_path)
    assert (code, first["verdict"], first["log"]["seen_size"]) == (0, "accept", None)
    with httpx.Client(transport=attested_transport(gateway.policy_text)) as client:
        answer = client.get(f"{gateway.url}/models")
        attestation = answer.extensions["attestation"]
        attestation.save(tmp_path / "bundle.json", log_seconds=60)
    code, second = check(gateway, tmp_path)
    assert (code, second["log"]["seen_size"], second["log"]["size"]) == (0, 1, 2)
    gateway.restart()
    code, third = check(gateway, tmp_path)
    assert (code, third["log"]["boots"], third["log"]["seen_size"]) == (0, 1, 2)
    words = attested(
        "log",
        "check",
        gateway.origin,
        "--policy",
        str(tmp_path / "policy.toml"),
        "--state",
        str(tmp_path / "state.json"),
    )
    assert "continues what was seen at the last visit (1 entries)" in words.stdout
    state = json.loads((tmp_path / "state.json").read_text())
    other = Ed25519PrivateKey.generate()
    key = VerifierKey(name="example.com/other", key=other.public_key().public_bytes_raw())
    head = Checkpoint(origin=key.name, size=1, root=bytes(32))
    state[gateway.origin] = sign_checkpoint(head, other).decode()
    (tmp_path / "state.json").write_text(json.dumps(state))
    code, last = check(gateway, tmp_path)
    assert (code, last["check"]) == (3, "log.predecessor")
    assert json.loads((tmp_path / "state.json").read_text()) == state


def test_visits_at_once(gateway: LiveGateway, tmp_path: Path) -> None:
    """A visit waits for the one before it, so that neither forgets what the other has seen; it says so when it cannot be noted."""
    state = tmp_path / "state.json"
    with ThreadPoolExecutor(1) as pool:
        with one_at_a_time(state):
            visiting = pool.submit(check, gateway, tmp_path)
            time.sleep(0.5)
            state.write_text(json.dumps({"https://another": "seen"}))
        assert visiting.result(60)[0] == 0
    assert json.loads(state.read_text()).keys() == {"https://another", gateway.origin}
    (tmp_path / "file").write_text("")
    code, said = check(gateway, tmp_path, "--state", str(tmp_path / "file" / "state.json"))
    assert (code, said["check"], said["verdict"]) == (5, "log.format", "undecided")


def test_by_key(gateway: LiveGateway, tmp_path: Path) -> None:
    """A log may be looked at by its own key and address, without an enclave; another key is refused."""
    key = VerifierKey(name="x", key=gateway.identity.statement.keys.log_ed25519 or b"")
    arguments = ["--state", str(tmp_path / "state.json"), "--json"]
    done = attested("log", "check", f"{gateway.origin}/log", "--key", str(key), *arguments)
    assert json.loads(done.stdout)["check"] == "log.origin"
    own = VerifierKey(name=log_origin(key.key), key=key.key)
    done = attested("log", "check", f"{gateway.origin}/log", "--key", str(own), *arguments)
    assert (done.returncode, json.loads(done.stdout)["log"]["size"]) == (0, 1)
    witness = VerifierKey(name="witness.example", key=key.key, kind=KeyKind.WITNESS)
    done = attested(
        "log", "check", f"{gateway.origin}/log", "--key", str(own), "--witness", str(witness), *arguments
    )
    assert (done.returncode, json.loads(done.stdout)["check"]) == (3, "log.witness")
    for more in ([], ["--key", str(key), "--policy", "x"]):
        assert attested("log", "check", gateway.origin, *more).returncode == 64
    assert attested("log", "check", gateway.origin, "--key", "nothing", *arguments).returncode == 2


def test_a_chat_is_saved_with_its_proof(gateway: LiveGateway, tmp_path: Path) -> None:
    """`attested chat --save` waits for the log, `attested audit` checks what it got; `--logged` demands it."""
    policy, file = str(tmp_path / "policy.toml"), tmp_path / "answer.json"
    done = attested("chat", gateway.origin, "--policy", policy, "hello", "--save", str(file))
    assert done.returncode == 0, done.stderr
    done = attested("audit", str(file), "--policy", policy, "--logged")
    assert (done.returncode, "logged: 1, not logged: none" in done.stdout) == (0, True), done.stdout
    bundle = parse_bundle(file.read_bytes())
    (exchange,) = bundle.exchanges
    assert exchange.log is not None
    file.write_bytes(dump_bundle(replace(bundle, exchanges=(replace(exchange, log=None),))))
    done = attested("audit", str(file), "--policy", policy, "--json")
    assert (done.returncode, json.loads(done.stdout)["logged"]) == (0, 0)
    done = attested("audit", str(file), "--policy", policy, "--logged")
    assert (done.returncode, "[log.missing]" in done.stdout) == (3, True)
    done = attested("log", "prove", str(file), gateway.origin, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(file), "proven": 1}
    assert parse_bundle(file.read_bytes()).exchanges[0].log is not None
    wrong = replace(exchange, log=re.sub(rb"index \d+", b"index 0", exchange.log))
    with pytest.raises(VerificationError) as error:
        audit(replace(bundle, exchanges=(wrong,)), parse_policy(gateway.policy_text))
    assert error.value.check is Check.LOG_INCLUSION


def test_a_receipt_that_is_not_logged(gateway: LiveGateway, tmp_path: Path) -> None:
    """A receipt that the log does not have leaves the file as it was, and is exit code 5."""
    with httpx.Client(transport=attested_transport(gateway.policy_text)) as client:
        attestation = client.get(f"{gateway.url}/models").extensions["attestation"]
    bundle = attestation.bundle()
    file = tmp_path / "bundle.json"
    file.write_bytes(dump_bundle(replace(bundle, exchanges=(replace(bundle.exchanges[0], receipt="a.b.c"),))))
    before = file.read_bytes()
    done = attested("log", "prove", str(file), gateway.origin)
    assert (done.returncode, "log.fetch" in done.stderr) == (5, True)
    assert file.read_bytes() == before
    statement = parse_statement(parse_evidence(bundle.evidence).statement)
    with LogClient.of_gateway("https://127.0.0.1:1") as nobody, pytest.raises(UnavailableError):
        nobody.prove("a.b.c", statement)


def test_a_state_file_that_cannot_be_read(gateway: LiveGateway, tmp_path: Path) -> None:
    """Without what was seen last a second history would go unseen: malformed is malformed."""
    for text in ("[]", '{"x": 1}', "nothing"):
        (tmp_path / "state.json").write_text(text)
        code, said = check(gateway, tmp_path)
        assert (code, said["check"]) == (2, "log.format")


def test_an_enclave_without_a_log(tmp_path: Path, engine: FakeEngine) -> None:
    """It is said by name that there is none."""
    with live_gateway(tmp_path, engine=engine) as gateway:
        (tmp_path / "policy.toml").write_text(gateway.policy_text)
        code, said = check(gateway, tmp_path)
    assert (code, said["check"]) == (3, "log.missing")


def test_a_bundle_with_something_else_as_its_proof(gateway: LiveGateway) -> None:
    """The member `log` is base64url of a proof, or the bundle does not hold."""
    with httpx.Client(transport=attested_transport(gateway.policy_text)) as client:
        bundle = client.get(f"{gateway.url}/models").extensions["attestation"].bundle()
    broken = replace(bundle, exchanges=(replace(bundle.exchanges[0], log=b"no proof"),))
    assert parse_bundle(dump_bundle(broken)) == broken
    with pytest.raises(MalformedError) as error:
        audit(broken, parse_policy(gateway.policy_text))
    assert error.value.check is Check.LOG_FORMAT
