"""What the project's own files promise: exact locks, one version, one list of packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ENTRY = re.compile(r"[A-Za-z0-9._-]+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_exact_versions_with_hashes_and_nothing_else(lock: Path) -> None:
    """No option, address, path or comment of a machine gets into a lock, and pip can hold every file to its hash."""
    text = re.sub(r"\A(#.*\n)*", "", lock.read_text())
    assert ENTRY.sub("", text) == ""
    assert ENTRY.search(text)


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-server.lock"])
def test_what_is_tested_is_what_is_installed(name: str) -> None:
    """The client's and the server's locks are parts of the one that the tests run with."""
    assert pins(name).items() <= pins("requirements-dev.lock").items()


def test_the_client_brings_neither_framework_nor_engine() -> None:
    """`pip install attested-inference` verifies; it does not serve."""
    assert (
        pins("requirements.lock")
        .keys()
        .isdisjoint({"fastapi", "starlette", "uvicorn", "vllm", "openai", "aiohttp"})
    )


def test_every_package_is_typed() -> None:
    """PEP 561: the types reach those who install the package."""
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert (ROOT / package / "py.typed").exists()


def test_the_changelog_knows_the_version() -> None:
    """A version is either still unreleased or has its own heading."""
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(headings) == 1 or PROJECT["project"]["version"] in headings


def test_make_help_lists_every_phony_target() -> None:
    """`make help` is read from the Makefile, so a target without a line there is a target that nobody finds."""
    text = (ROOT / "Makefile").read_text()
    phony = {name for line in re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE) for name in line.split()}
    listed = set(re.findall(r"^## (\S+)", text, re.MULTILINE))
    assert phony - listed == {
        "container-wheels",
        "image-wheels",
        "quickstart-model",
        "tiny-model",
    }  # parts of others
