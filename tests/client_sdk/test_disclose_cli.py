"""`attested disclose`, and `attested audit` of what it writes: what is shown, what is not, and exact exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.bundle import dump_bundle
from attestation.disclosure import dump_disclosure
from attestation.policy import parse_policy
from client_sdk.commands import audit as audit_command
from client_sdk.exits import ExitCode
from tests.attestation.test_disclosure import BUNDLE, GOOD, MESSAGES, TEXTS, message
from tests.client_sdk.pretend import POLICY
from tests.client_sdk.test_cli import Done, attested


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy that accepts the pretended enclave; its simulator's root is known to this process alone."""
    file = tmp_path / "policy.toml"
    monkeypatch.setattr(
        audit_command, "load_policy", lambda path: POLICY if path == file else parse_policy("x")
    )
    return file


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A bundle with one chat of three messages and two choices."""
    file = tmp_path / "bundle.json"
    file.write_bytes(dump_bundle(BUNDLE))
    return file


def disclosed(saved: Path, *options: str) -> tuple[Done, Path]:
    output = saved.parent / "shown.json"
    return attested("disclose", str(saved), "-o", str(output), *options), output


def test_what_is_shown_holds(saved: Path, policy: Path) -> None:
    """The same file as the library makes; the audit tells what is shown and what is hidden."""
    done, output = disclosed(saved, "--message", "2", "--choice", "0")
    assert done.returncode == 0
    assert output.read_bytes() == dump_disclosure(GOOD)
    done = attested("audit", str(output), "--policy", str(policy))
    assert done.returncode == 0
    assert f"message 2: {MESSAGES[2].decode()}" in done.stdout
    assert f"choice 0: {TEXTS[0]}" in done.stdout
    assert "hidden: message 0, message 1, choice 1" in done.stdout
    assert "treasure" not in done.stdout
    assert "saved without" not in done.stdout


def test_a_disclosure_for_programs(saved: Path) -> None:
    """--json prints one object: which parts are shown, and how many are not."""
    done, output = disclosed(saved, "--message", "2", "--choice", "0", "--json")
    assert json.loads(done.stdout) == {
        "file": str(output),
        "shown": {"messages": [2], "choices": [0]},
        "hidden": {"messages": 2, "choices": 1},
    }


def test_as_json_and_in_a_folder(tmp_path: Path, policy: Path) -> None:
    """Beside bundles; null for what is hidden, and nothing told of a disclosure that does not hold."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.json").write_bytes(dump_bundle(BUNDLE))
    (folder / "2.json").write_bytes(dump_disclosure(GOOD))
    (folder / "3.json").write_bytes(dump_disclosure(message(2, value=b"something else")))
    (folder / "4.json").write_bytes(b'{"purpose":"attested-inference/disclosure"}')
    done = attested("audit", str(folder), "--policy", str(policy), "--json")
    found = json.loads(done.stdout)
    assert done.returncode == ExitCode.NOT_AUTHENTIC
    assert (found["exchanges"], found["held"], found["digests_only"]) == (4, 2, 0)
    assert [one["check"] for one in found["refused"]] == ["receipt.parts", "disclosure.format"]
    (shown,) = found["disclosed"]
    assert shown["messages"] == [None, None, MESSAGES[2].decode()]
    assert shown["choices"] == [TEXTS[0], None]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ((), ExitCode.USAGE),
        (("--message", "3"), ExitCode.USAGE),
        (("--choice", "2"), ExitCode.USAGE),
        (("--message", "0", "--exchange", "1"), ExitCode.USAGE),
        (("--message", "0", "-o", "/nowhere/at/all"), ExitCode.UNDECIDED),
    ],
)
def test_wrong_usage(saved: Path, options: tuple[str, ...], code: ExitCode) -> None:
    """Nothing to show, nothing there, nowhere to write: no file."""
    done, output = disclosed(saved, *options)
    assert done.returncode == code
    assert not output.exists()


def test_what_cannot_be_disclosed(saved: Path) -> None:
    """No bundle, and a bundle without bytes, are told apart, and nothing is written."""
    bare = replace(BUNDLE, exchanges=(replace(BUNDLE.exchanges[0], request=None),))
    for content, code, check in (
        (b"{}", ExitCode.MALFORMED, "bundle.format"),
        (dump_bundle(bare), ExitCode.NOT_AUTHENTIC, "receipt.parts"),
    ):
        saved.write_bytes(content)
        done, output = disclosed(saved, "--message", "0")
        assert done.returncode == code
        assert f"[{check}]" in done.stderr
        assert not output.exists()
