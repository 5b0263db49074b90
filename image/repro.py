"""Builds an image again, elsewhere, and says where the two differ."""

from __future__ import annotations

from pathlib import Path

from image.errors import ImageError


def repeat(out: Path) -> str:
    """One line that says that both are the same. Raises otherwise."""
    raise ImageError(f"cannot build {out} again yet")
