"""Builds the image: Dockerfile.enclave's file system as a disk that the kernel checks block by block, and what boots it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from image.errors import ImageError


class Target(StrEnum):
    """A stage of Dockerfile.enclave that makes an image."""

    CPU = "cpu"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What was built."""

    id: str


def build_image(out: Path, *, config: bytes, target: Target, disk: bool) -> Built:
    """Write the folder `out`, or leave what was there."""
    raise ImageError(f"cannot build {out} yet: {len(config)} {target} {disk}")
