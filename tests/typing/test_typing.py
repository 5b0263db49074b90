"""The public API has the types that it says: a user's code passes strict type checkers."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
API = Path(__file__).parent / "api.py"


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)


def test_mypy_accepts_a_users_code() -> None:
    """Under mypy's strict rules."""
    found = run(sys.executable, "-m", "mypy", "--strict", API)
    assert not found.returncode, found.stdout


@pytest.mark.slow
def test_pyright_accepts_a_users_code() -> None:
    """Under pyright's strict rules, which the file asks for itself."""
    if find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    if run(sys.executable, "-m", "pyright", "--version").returncode:
        pytest.skip("pyright needs Node.js, and npm the first time")
    found = run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, API)
    assert not found.returncode, found.stdout


def test_every_public_name_is_used_there() -> None:
    """What is exported and not in the file, beside its import, would be checked by nobody; and so with what these two have."""
    import client_sdk

    text = API.read_text()
    assert [n for n in client_sdk.__all__ if len(re.findall(rf"\b{n}\b", text)) < 2] == []
    for kind, inner in ((client_sdk.Attestation, {"check"}), (client_sdk.Trust, {"session"})):
        members = {name for name in vars(kind) if not name.startswith("_")} - inner
        assert [name for name in sorted(members) if f".{name}" not in text] == []
