"""The documentation says what the code does: these tests hold the two together."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from attestation.checks import Check

ROOT = Path(__file__).resolve().parent.parent
VERIFICATION = (ROOT / "docs" / "verification.md").read_text()
TESTS = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))


def test_every_check_has_one_heading() -> None:
    """docs/verification.md explains each check once, and no check that does not exist."""
    headings = re.findall(r"^### `([a-z0-9_.]+)`$", VERIFICATION, flags=re.MULTILINE)
    assert sorted(headings) == sorted(map(str, Check))


@pytest.mark.parametrize("check", list(Check))
def test_every_check_has_a_test_that_fails_it(check: Check) -> None:
    """A check that no test expects to fail is a check that may never fail."""
    assert re.search(rf"Check\.{check.name}\b|[\"']{re.escape(check)}[\"']", TESTS), f"no test names {check}"


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"], ids=lambda p: p.name
)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Links between pages and to files are not broken."""
    if not page.exists():
        pytest.fail(f"{page.name} is missing")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_names_a_registry_host_or_a_machines_path() -> None:
    """No index address, no download address of a package and no path of the machine it was written on."""
    hosts = re.compile(
        r"files\.pythonhosted|pypi\.org/simple|registry\.npmjs|--(extra-)?index-url[ =]|--find-links[ =]"
    )
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout: there is no list of what belongs to the project")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if not path.is_file() or path == Path(__file__):
            continue
        text = path.read_bytes().decode(errors="ignore")
        assert not hosts.search(text), f"{name} names a package index"
        assert f"{ROOT}/" not in text, f"{name} holds a path of this machine"
