"""The hasher of the engine's lock."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools import hash_pins


def test_hashes_are_written_beside_their_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments stay, entries are sorted, an old hash goes, and names match however they are spelled."""
    lock = tmp_path / "engine.lock"
    lock.write_text("# why\nzeta==2\nAlpha_one==1+cpu \\\n    --hash=sha256:old\n")
    monkeypatch.setattr(hash_pins, "hashes", lambda wanted: {"alpha-one": "aa", "zeta": "bb"})
    monkeypatch.setattr(sys, "argv", ["hash_pins", str(lock)])
    assert hash_pins.main() == 0
    assert lock.read_text() == (
        "# why\nAlpha_one==1+cpu \\\n    --hash=sha256:aa\nzeta==2 \\\n    --hash=sha256:bb\n"
    )
