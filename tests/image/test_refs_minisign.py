"""`refs statement`, and minisign's signatures over what it writes: ours and minisign's own."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from time import time

import pytest
from typer.testing import CliRunner, Result

from attestation.references import dump_references, dump_statement
from attestation.reviewers import ReferencesPolicy, Reviewer
from enclave_server.__main__ import cli
from image.refs import DAY
from tests.attestation.test_reviewers import BOB, MINISIGN, minisigned
from tests.image.test_refs import FIRST

MINISIGN_TOOL = shutil.which("minisign")
NOW = int(time())
EDITION = replace(FIRST, issued=NOW, expires=NOW + 90 * DAY)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["refs", *map(str, arguments)])


@pytest.fixture
def statement(tmp_path: Path) -> Path:
    """What a reviewer is given to sign."""
    (tmp_path / "refs.json").write_bytes(dump_references(EDITION))
    done = run("statement", tmp_path / "refs.json", "-o", tmp_path / "references.json")
    assert done.exit_code == 0, done.output
    return tmp_path / "references.json"


def test_the_statement_is_what_is_signed(statement: Path) -> None:
    """The bytes of `sign`; an edition that does not follow the one in the file is not written over it."""
    assert statement.read_bytes() == dump_statement(EDITION)
    older = statement.parent / "older.json"
    older.write_bytes(dump_references(replace(EDITION, epoch=2)))
    done = run("statement", older, "-o", statement)
    assert done.exit_code != 0
    assert statement.read_bytes() == dump_statement(EDITION)


def test_who_has_signed_with_minisign(statement: Path) -> None:
    """`show` says it with the trusted comment, and why not."""
    folder = statement.parent
    (folder / "bob.pub").write_text(f"untrusted comment: bob\n{BOB.key}\n")
    (folder / "good.minisig").write_bytes(
        minisigned(MINISIGN, statement.read_bytes(), comment=b"read it\x1b[2J")
    )
    (folder / "bad.minisig").write_bytes(minisigned(MINISIGN, b"another"))
    asked = ("show", statement, "--key", folder / "bob.pub")
    assert "has NOT signed this (no signature given" in run(*asked).output
    assert "has NOT signed this (minisign: " in run(*asked, "--minisig", folder / "bad.minisig").output
    both = run(*asked, "--minisig", folder / "bad.minisig", "--minisig", folder / "good.minisig").output
    assert "has signed this (read it" in both
    assert "\x1b" not in both


@pytest.mark.skipif(MINISIGN_TOOL is None, reason="minisign is not installed")
@pytest.mark.parametrize("legacy", [(), ("-l",)], ids=["ED", "Ed"])
def test_what_minisign_signs_counts(statement: Path, legacy: tuple[str, ...]) -> None:
    """A key and a signature made by minisign itself are those of a reviewer."""

    def minisign(*arguments: str) -> None:
        command = [str(MINISIGN_TOOL), *arguments]
        subprocess.run(command, cwd=statement.parent, check=True, capture_output=True, timeout=240)

    minisign("-G", "-W", "-p", "eve.pub", "-s", "eve.key")
    minisign("-S", *legacy, "-s", "eve.key", "-m", statement.name)
    reviewer = Reviewer(name="eve", key=(statement.parent / "eve.pub").read_text())
    policy = ReferencesPolicy(file="references.json", name=EDITION.name, reviewers=(reviewer,))
    signature = (statement.parent / "references.json.minisig").read_bytes()
    assert policy.verify(statement.read_bytes(), {"references.json.minisig": signature}) == EDITION
