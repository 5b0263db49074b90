"""Where real vendor-signed evidence lies: outside this project, which carries none of it.

`ATTESTATION_VECTORS` names the folder; without it, `../shared/vectors` beside the checkout is used when present.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).resolve().parent.parent


def _find() -> Path | None:
    named = os.environ.get("ATTESTATION_VECTORS")
    folder = Path(named) if named else _HERE.parent / "shared" / "vectors"
    return folder if (folder / "MANIFEST.json").is_file() else None


VECTORS = _find()

needs_vectors = pytest.mark.skipif(
    VECTORS is None, reason="real vendor evidence is not here; set ATTESTATION_VECTORS to its folder"
)


@cache
def manifest(tee: str) -> list[dict[str, Any]]:
    """The manifest's entries of one kind of TEE; empty when the vectors are not here."""
    if VECTORS is None:
        return []
    entries: list[dict[str, Any]] = json.loads((VECTORS / "MANIFEST.json").read_text())["vectors"]
    return [entry for entry in entries if entry["tee"] == tee]


def read(path: str) -> bytes:
    """One vector file, by its path in the manifest."""
    if VECTORS is None:
        pytest.skip("real vendor evidence is not here; set ATTESTATION_VECTORS to its folder")
    return (VECTORS / path).read_bytes()
