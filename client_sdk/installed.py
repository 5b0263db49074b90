"""Which version of this program is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_NAME = "attested-inference"


def installed() -> str:
    """Name and version; a checkout has none."""
    try:
        return f"{_NAME} {version(_NAME)}"
    except PackageNotFoundError:
        return f"{_NAME}, from a checkout"
