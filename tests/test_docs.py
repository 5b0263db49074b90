"""The documentation says what the code does: these tests hold the two together."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")) + [ROOT / "README.md"], ids=lambda p: p.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    """Links between pages and to files are not broken."""
    if not page.exists():
        pytest.fail(f"{page.name} is missing")
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_nothing_names_a_registry_host_or_a_machines_path() -> None:
    """No index address, no download address of a package and no absolute path of one machine in any tracked text."""
    hosts = re.compile(r"(files\.pythonhosted|pypi\.org/simple|registry\.npmjs|--(extra-)?index-url|--find-links)")
    for path in ROOT.rglob("*"):
        hidden = any(part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts)
        if hidden or not path.is_file() or path == Path(__file__) or path.stat().st_size > 2_000_000:
            continue
        text = path.read_bytes().decode(errors="ignore")
        assert not hosts.search(text), f"{path.relative_to(ROOT)} names a package index"
        assert str(ROOT) not in text or ROOT == Path("/"), f"{path.relative_to(ROOT)} holds a path of this machine"
