"""What commands print for programs, and when they are given nonsense: one object, its members as documented, no traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_sdk.exits import ExitCode
from tests.client_sdk.test_cli import attested
from tests.servers import FakeEngine, LiveGateway, live_gateway

PAGE = (Path(__file__).parent.parent.parent / "docs" / "output.md").read_text()
FIVE = ["verdict", "check", "detail", "advice", "violations"]


def documented(command: str) -> set[str]:
    """The members that docs/output.md lists for a command."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    row = next(row for row in rows if f"`{command}`" in row[0])
    text = re.sub(r"\([^)]*\)|;.*", "", row[1].rstrip("| "))
    return {*re.findall(r"`(\w+)`", text), *(FIVE if text.startswith("+") else [])}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveGateway, Path]]:
    """A gateway that keeps a log, its policy, and a saved answer of it."""
    folder = tmp_path_factory.mktemp("output")
    with (
        FakeEngine(folder / "engine.sock") as engine,
        live_gateway(folder, engine=engine, log_dir=folder / "log") as gateway,
    ):
        (folder / "policy.toml").write_text(gateway.policy_text)
        arguments = ["--policy", str(folder / "policy.toml"), "--save", str(folder / "answer.json")]
        assert attested("chat", gateway.origin, *arguments, "hello").returncode == 0
        yield gateway, folder


def said(work: tuple[LiveGateway, Path], line: str) -> tuple[int, dict[str, Any]]:
    """The one object that a command prints, with the gateway's address, policy and folder put in."""
    gateway, folder = work
    filled = line.replace("URL", gateway.origin).replace("POLICY", str(folder / "policy.toml"))
    done = attested(*(word.replace("DIR", str(folder)) for word in filled.split()), "--json")
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, answer


GOOD = {
    "verify": "URL --policy POLICY",
    "chat": "URL --policy POLICY hello",
    "audit": "DIR/answer.json --policy POLICY",
    "report": "DIR/answer.json --policy POLICY -o DIR/answer.html",
    "disclose": "DIR/answer.json --message 0 -o DIR/shown",
    "inspect": "DIR/answer.json",
    "log check": "URL --policy POLICY --state DIR/logs",
    "log prove": "DIR/answer.json URL",
    "lock": "URL --policy POLICY -o DIR/attest.lock --yes",
    "diff": "POLICY POLICY",
    "policy explain": "POLICY",
    "policy check": "POLICY",
    "doctor": "URL --policy POLICY",
}


@pytest.mark.parametrize("command", GOOD)
def test_the_members_that_are_documented(work: tuple[LiveGateway, Path], command: str) -> None:
    """docs/output.md lists exactly what a command prints when all is well."""
    code, answer = said(work, f"{command} {GOOD[command]}")
    assert code == ExitCode.ACCEPT, answer
    assert set(answer) == documented(command)


NO_FILE = {
    "verify": "URL --policy DIR/none",
    "chat": "URL --policy DIR/none hello",
    "report": "DIR/none --policy POLICY -o DIR/x",
    "disclose": "DIR/none --message 0 -o DIR/x",
    "replay": "DIR/none --policy POLICY --engine URL",
    "inspect": "DIR/none",
    "explain": "DIR/none --policy POLICY",
    "log check": "URL --policy DIR/none --state DIR/logs",
    "log prove": "DIR/none URL",
    "lock": "URL --policy DIR/none -o DIR/x --yes",
    "diff": "DIR/none POLICY",
    "policy explain": "DIR/none",
    "policy check": "DIR/none",
    "collateral fetch": "DIR/none -o DIR/x",
    "evidence tdx": "DIR/none",
    "evidence foreign": "DIR/none",
}
REFUSED = {
    "lock": "URL -o DIR/x --yes",
    "report": "DIR/answer.json --policy POLICY -o DIR/no/x",
    "disclose": "DIR/answer.json --message 0 -o DIR/no/x",
    "verify": "http://127.0.0.1:1 --policy POLICY",
    "log check": "https://127.0.0.1:1 --policy POLICY --state DIR/logs",
    "chat": "URL --policy POLICY --save DIR/no/x hello",
    "provision": "URL --policy POLICY --key DIR/none --secret a=DIR/none",
    "audit": "DIR/policy.toml --policy POLICY",
}


@pytest.mark.parametrize("command", NO_FILE)
def test_a_file_that_is_not_there(work: tuple[LiveGateway, Path], command: str) -> None:
    """It leaves the question open, for people in words and for programs in the same five members."""
    code, answer = said(work, f"{command} {NO_FILE[command]}")
    assert (code, set(FIVE) <= set(answer)) == (ExitCode.UNDECIDED, True)
    assert answer["verdict"] in {"undecided", "not_replayable"}
    assert "No such file" in answer["detail"]


@pytest.mark.parametrize("command", REFUSED)
def test_other_failures(work: tuple[LiveGateway, Path], command: str) -> None:
    """Whatever fails, and wherever the outcome cannot go, there is one object."""
    code, answer = said(work, f"{command} {REFUSED[command]}")
    assert (code > 0, answer["verdict"] in {"refuse", "undecided"}) == (True, True)
    if command == "audit":
        assert (set(answer), "attested inspect" in answer["refused"][0]["advice"]) == (
            documented("audit"),
            True,
        )
    else:
        assert set(FIVE) <= set(answer)
        assert answer["detail"]


JUNK = {
    "nothing": b"",
    "random bytes": bytes(range(256)) * 9,
    "text": b"hello\n",
    "JSON of something else": b'{"a": [1, 2]}',
    "a policy": b"[tdx]\n",
    "too much": b"\0" * (65 * 1024 * 1024),
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("command", ["report", "disclose", "replay", "inspect", "explain", "log prove"])
def test_files_of_something_else(work: tuple[LiveGateway, Path], command: str, junk: str) -> None:
    """They are malformed, and never a traceback."""
    (work[1] / "junk").write_bytes(JUNK[junk])
    line = NO_FILE[command].replace("DIR/none", "DIR/junk")
    code, answer = said(work, f"{command} {line}")
    assert (code, answer["check"] is not None) == (ExitCode.MALFORMED, True)


@pytest.mark.parametrize("junk", [name for name in JUNK if name not in {"nothing", "a policy"}])
def test_policies_of_something_else(work: tuple[LiveGateway, Path], junk: str) -> None:
    """No enclave is asked, none of its links is called refused, and a huge file is not read to its end."""
    (work[1] / "junk").write_bytes(JUNK[junk])
    code, answer = said(work, "verify URL --policy DIR/junk")
    assert (code, answer["check"]) == (ExitCode.MALFORMED, "policy.format")
    assert [link["state"] for link in answer["links"][1:]] == ["not reached"] * (len(answer["links"]) - 1)


def test_each_refusal_says_what_to_do(work: tuple[LiveGateway, Path]) -> None:
    """A simulated root under the vendors', another model, a policy that ended, a file that is not there."""
    gateway, folder = work
    expected = {
        "tdx.root": (gateway.policy_text[gateway.policy_text.index("[tdx]") :], "enclave-server policy"),
        "policy.model": (gateway.policy_text.replace("model_digests", "#"), "attested diff"),
        "policy.expired": (f"{gateway.policy_text}\n[release]\nexpires = 2025-01-01T00:00:00Z\n", "Lock"),
    }
    for check, (text, advice) in expected.items():
        (folder / "other.toml").write_text(text)
        _, answer = said(work, "verify URL --policy DIR/other.toml")
        assert (answer["check"], advice in answer["advice"]) == (check, True), answer
        done = attested("verify", gateway.origin, "--policy", str(folder / "other.toml"))
        assert advice in done.stdout


def test_proofs_that_are_there_are_looked_at(work: tuple[LiveGateway, Path]) -> None:
    """`log prove` does not call proven what somebody else's proof stands beside; and leaves a private file private."""
    gateway, folder = work
    bundle = json.loads((folder / "answer.json").read_text())
    (exchange,) = bundle["exchanges"]
    exchange["receipt"] = exchange["receipt"][:-20] + "A" * 20
    (folder / "forged.json").write_text(json.dumps(bundle))
    done = attested("log", "prove", str(folder / "forged.json"), gateway.origin)
    assert (done.returncode, "[log.inclusion]" in done.stderr) == (ExitCode.NOT_AUTHENTIC, True)
    (folder / "answer.json").chmod(0o600)
    assert attested("log", "prove", str(folder / "answer.json"), gateway.origin).returncode == 0
    assert (folder / "answer.json").stat().st_mode & 0o777 == 0o600
