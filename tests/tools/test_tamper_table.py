"""docs/tamper.md says what the tests run."""

from __future__ import annotations

from pathlib import Path

from tools.tamper_table import page

PAGE = Path(__file__).parent.parent.parent / "docs/tamper.md"


def test_the_page_is_what_the_tests_run() -> None:
    """Nothing in it is written by hand."""
    assert PAGE.read_text() == page()


def test_no_case_is_refused_by_two_checks() -> None:
    """Where two tests do the same thing in two ways, they agree on what refuses it."""
    sections = page().split("\n## ")[1:]
    assert len(sections) > 1
    for section in sections:
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        names = [row.split(" | ")[0] for row in rows]
        assert len(names) == len(set(names)), section.splitlines()[0]
