"""`attested verify` and `attested chat` as a person runs them: calm lines, exact exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from client_sdk.cli import app
from client_sdk.commands.examples import EXAMPLES
from tests.client_sdk.conftest import Relay
from tests.servers import FakeEngine, LiveGateway, free_port, live_gateway

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def attested(*arguments: str, stdin: str = "") -> Done:
    """Run a command in this process: a traceback would be an exception here."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def states(shown: str) -> list[str]:
    """The state at the end of each line of the chain."""
    lines = [line for line in shown.splitlines() if line[:2] == "  " and line[2] != " "]
    return [line.rstrip().rpartition("  ")[2].strip() for line in lines]


@pytest.fixture
def policy(tmp_path: Path, gateway: LiveGateway) -> Path:
    """A policy that accepts the gateway."""
    file = tmp_path / "policy.toml"
    file.write_text(gateway.policy_text)
    return file


def test_verify_accepts(gateway: LiveGateway, policy: Path) -> None:
    """One line per link, all of them reached but the GPUs that are not there; a simulated TEE is called that."""
    done = attested("verify", gateway.origin, "--policy", str(policy))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ACCEPTED  {gateway.origin}")
    assert states(done.stdout).count("passed") == 6
    assert states(done.stdout).count("not reached") == 1
    assert "SIMULATED" in done.stdout
    assert "proves nothing about hardware" in done.stdout


def test_verify_as_json(gateway: LiveGateway, policy: Path) -> None:
    """The same for programs: verdict, links, and every claim."""
    done = attested("verify", gateway.url, "--policy", str(policy), "--json")
    answer = json.loads(done.stdout)
    assert answer["verdict"] == "accept"
    assert answer["simulated"] is True
    assert [link["state"] for link in answer["links"]].count("passed") == 6
    assert answer["claims"]["statement"]["model"]["names"] == ["fake-model"]


def test_verify_on_simulated_snp(tmp_path: Path, engine: FakeEngine) -> None:
    """The other machine."""
    with live_gateway(tmp_path, engine=engine, tee="simulated-snp") as gateway:
        file = tmp_path / "policy.toml"
        file.write_text(gateway.policy_text)
        done = attested("verify", gateway.origin, "--policy", str(file))
    assert done.returncode == 0, done.stdout
    assert "AMD SEV-SNP" in done.stdout


CHANGES: dict[str, tuple[int, str, Callable[[str], str]]] = {
    "a policy with nonsense in it": (2, "policy.format", lambda _: "[nonsense]\n"),
    "another root": (3, "tdx.root", lambda text: text[text.index("[tdx]") :]),
    "another model": (4, "policy.model", lambda text: text.replace("model_digests", "#")),
}


@pytest.mark.parametrize("case", CHANGES)
@pytest.mark.parametrize("command", ["verify", "chat"])
def test_refusals(gateway: LiveGateway, policy: Path, case: str, command: str) -> None:
    """The exit code says which branch of the error tree, the text which check; nothing after it has passed."""
    code, check, change = CHANGES[case]
    policy.write_text(change(gateway.policy_text))
    done = attested(command, gateway.origin, "--policy", str(policy), *(["hi"] if command == "chat" else []))
    assert done.returncode == code
    assert f"[{check}]" in done.stdout + done.stderr
    if command == "verify":
        assert done.stdout.startswith("REFUSED")
        assert states(done.stdout)[-1] == "not reached"
        answer = json.loads(attested("verify", gateway.origin, "--policy", str(policy), "--json").stdout)
        assert answer["check"] == check
        assert answer["verdict"] == "refuse"


@pytest.mark.parametrize("command", ["verify", "chat"])
def test_nobody_there(policy: Path, command: str) -> None:
    """Not reachable is not refused."""
    url = f"https://127.0.0.1:{free_port()}"
    done = attested(command, url, "--policy", str(policy), *(["hi"] if command == "chat" else []))
    assert done.returncode == 5
    assert "[evidence.fetch]" in done.stdout + done.stderr
    assert ("nothing was asked" in done.stderr) == (command == "chat")


@pytest.mark.parametrize("command", ["verify", "chat"])
@pytest.mark.parametrize("url", ["127.0.0.1:1", "localhost", "https://", "https://host:99999", "https://[x]"])
def test_what_is_no_address_of_anything(policy: Path, command: str, url: str) -> None:
    """No scheme, no host or an impossible port are wrong usage, and it is said how an address looks."""
    done = attested(command, url, "--policy", str(policy), *(["hi"] if command == "chat" else []))
    assert done.returncode == 64
    assert ("https://host:port" if "://" in url else f"https://{url}") in done.stderr


@pytest.mark.parametrize("command", ["verify", "chat"])
def test_there_is_no_way_without_tls(policy: Path, command: str) -> None:
    """An address without TLS is refused by name, with the reason."""
    arguments = ["http://127.0.0.1:1", "--policy", str(policy), *(["hi"] if command == "chat" else [])]
    done = attested(command, *arguments)
    assert done.returncode == 3
    assert "[channel.unprotected] expected a base URL that begins with https://" in done.stdout + done.stderr


def test_another_tls_key(relay: Relay, policy: Path) -> None:
    """Evidence that passes, behind a key that does not: everything but the connection."""
    done = attested("verify", relay.origin, "--policy", str(policy))
    assert done.returncode == 3
    assert states(done.stdout)[-1] == "REFUSED"
    assert states(done.stdout).count("passed") == 5
    assert "[channel.tls_key]" in done.stdout


def test_chat(gateway: LiveGateway, policy: Path) -> None:
    """The answer on standard output, what was proven on standard error; the prompt may come from a pipe."""
    done = attested("chat", gateway.origin, "--policy", str(policy), "hello there")
    assert (done.returncode, done.stdout) == (0, "You said: hello there\n")
    assert "receipt" in done.stderr
    assert "SIMULATED" in done.stderr
    done = attested(
        "chat", gateway.url, "--policy", str(policy), "--model", "fake-model", stdin="from a pipe"
    )
    assert (done.returncode, done.stdout) == (0, "You said: from a pipe\n")


def test_chat_as_json(gateway: LiveGateway, engine: FakeEngine, policy: Path) -> None:
    """One object with the answer and what proves it; of an answer that is not proven, nothing but the reason."""
    chat = ("chat", gateway.origin, "--policy", str(policy), "--json", "hello there")
    answer = json.loads(attested(*chat).stdout)
    assert (answer["verified"], answer["answer"], answer["simulated"]) == (
        True,
        "You said: hello there",
        True,
    )
    assert answer["receipt"].startswith("rcpt-")
    policy.write_text(gateway.policy_text.replace("model_digests", "#"))
    done = attested(*chat)
    assert (done.returncode, json.loads(done.stdout)["check"]) == (4, "policy.model")


def test_an_answer_cannot_command_the_terminal(gateway: LiveGateway, policy: Path) -> None:
    """Control characters in an answer are shown, not obeyed."""
    done = attested("chat", gateway.origin, "--policy", str(policy), "a\x1b[2Jb")
    assert "\x1b" not in done.stdout
    assert "a\\x1b[2Jb" in done.stdout


def test_chat_says_when_an_answer_is_not_to_be_used(
    tmp_path: Path, engine: FakeEngine, gateway: LiveGateway, policy: Path
) -> None:
    """An engine that dies in mid-answer, and one that ends without [DONE], leave no verified answer."""
    engine.behaviour.die_after = 2
    done = attested("chat", gateway.origin, "--policy", str(policy), "hi")
    assert done.returncode == 5
    assert "no answer" in done.stderr
    assert "verified:" not in done.stderr


def test_the_program_itself(gateway: LiveGateway, policy: Path) -> None:
    """The console script, in a process of its own, with every warning an error."""
    program = [sys.executable, "-W", "error", "-c", "from client_sdk.cli import main; main()"]
    command = [*program, "verify", gateway.origin, "--policy", str(policy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ACCEPTED")


def test_words_that_reach_nobody(policy: Path) -> None:
    """On a full disk, or where nobody reads any more: the code of a question that stays open, and no traceback."""
    program = [sys.executable, "-c", "from client_sdk.cli import main; main()"]
    command = [*program, "policy", "explain", str(policy)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False
        )
    assert (done.returncode, done.stderr) == (5, "cannot write what was found: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (5, "")


def test_wrong_usage(gateway: LiveGateway, engine: FakeEngine, policy: Path) -> None:
    """Wrong usage has a code of its own; nothing is asked of a model without a prompt."""
    policy.write_text(gateway.policy_text)
    assert attested("chat", gateway.origin, "--policy", str(policy), stdin=" \n").returncode == 64
    assert not engine.requests
    assert attested("verify", gateway.origin).returncode == 64
    assert attested("verify").returncode == 64


@cache
def commands() -> dict[str, Any]:
    """Every command by the words that call it."""
    root: Any = get_command(app)
    found: dict[str, Any] = {}
    for name, later in root.commands.items():
        command = later.load()
        below = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in below.items()} if below else {name: command}
    return found


@pytest.mark.parametrize("words", ["", *commands(), "evidence", "policy", "collateral"])
def test_help(words: str) -> None:
    """Every command explains itself, what it asks for, and how it ends."""
    done = attested(*words.split(), "--help")
    assert done.returncode == 0
    (usage,) = (line for line in done.stdout.splitlines() if "Usage: " in line)
    assert not {"{", "}"} & {*usage}
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if "<bool>" in line and "-completion" not in line]
    if words in commands():
        assert "Exit codes: 0 " in done.stdout
        assert commands()[words].help


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_commands(name: str) -> None:
    """What `--help` shows can be typed: the command is there, and takes these arguments and options."""
    for line in EXAMPLES[name]:
        typed = line.partition('"$(')[2].rstrip(')"') or re.split(r" [|<] ", line)[0]
        program, *words = shlex.split(typed)
        arguments = words[len(name.split()) :]
        assert (program, words[: len(name.split())]) == ("attested", name.split())
        commands()[name].make_context(name, arguments)


def documented(page: str) -> list[str]:
    """The command lines of `attested` in the blocks of a page, without prompts and remarks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [re.split(r"\s+#\s", line)[0] for line in lines if line.startswith("attested ")]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_documented_commands_are_commands(page: Path) -> None:
    """What README and docs have people type is taken as it stands, every argument and option of it."""
    for line in documented(page.read_text()):
        words = shlex.split(line.replace("…", "").replace("HEX", "00ff"))[1:]
        name = next(name for count in (2, 1) if (name := " ".join(words[:count])) in commands())
        commands()[name].make_context(name, words[len(name.split()) :])


def test_json_everywhere() -> None:
    """What says something about evidence or files says it to programs as well."""
    silent = {n for n, c in commands().items() if not any("--json" in p.opts for p in c.params)}
    families = ("evidence ", "policy ", "collateral ")
    assert not silent & {"verify", "chat", "env", "doctor", "audit", "inspect"}
    assert not [name for name in silent if name.startswith(families)]


def test_policies_as_json(policy: Path) -> None:
    """What a policy says, field by field, and what is wrong with one that is none."""
    told = json.loads(attested("policy", "explain", str(policy), "--json").stdout)
    (statement,) = [table for table in told["tables"] if table["table"] == "statement"]
    (digests,) = [row for row in statement["fields"] if row["field"] == "model_digests"]
    assert digests["set"] is True
    assert json.loads(attested("policy", "check", str(policy), "--json").stdout)["policy"] is True
    policy.write_text("[nonsense]")
    done = attested("policy", "check", str(policy), "--json")
    assert (done.returncode, json.loads(done.stdout)["check"]) == (2, "policy.format")


def test_the_version(policy: Path) -> None:
    """`--version` names the program, alone."""
    done = attested("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "attested-inference")
