"""The model's files, and the digest that stands for all of them.

The manifest lists every file below the directory with its SHA-256; the model digest is the SHA-256 of the manifest's
RFC 8785 text (docs/protocol.md §5). Hashing proves what was read once: keep the directory read-only afterwards.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import rfc8785

# Formats that run code when they are loaded, and code itself.
REFUSED_SUFFIXES = frozenset(
    {
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".pkl",
        ".pickle",
        ".joblib",
        ".npy",
        ".npz",
        ".h5",
        ".keras",
        ".msgpack",
        ".py",
        ".pyc",
        ".so",
    }
)
MAX_FILES = 10_000


class ModelError(Exception):
    """The model directory is not one that this gateway serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of the manifest. `path` is relative, with forward slashes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file of a model."""

    files: tuple[File, ...]

    def to_bytes(self) -> bytes:
        return rfc8785.dumps({"v": 1, "files": [asdict(file) for file in self.files]})

    def digest(self) -> bytes:
        return hashlib.sha256(self.to_bytes()).digest()


def read_manifest(directory: Path, *, threads: int | None = None) -> Manifest:
    """Hash every file below `directory`, several at a time."""
    paths = _files(directory)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        return Manifest(tuple(pool.map(lambda path: _hash(directory, path), paths)))


def check_model(directory: Path, expected: str) -> Manifest:
    """The manifest of `directory`, if its digest is `expected` (hex)."""
    manifest = read_manifest(directory)
    if manifest.digest().hex() != expected:
        raise ModelError(
            f"the model in {directory} has digest {manifest.digest().hex()}, the settings demand {expected}; "
            "a file was changed, added or removed, or the setting is for another model"
        )
    return manifest


def _files(directory: Path) -> list[PurePosixPath]:
    if not directory.is_dir():
        raise ModelError(f"there is no model directory {directory}")
    root, found = directory.resolve(), []
    for folder, names, files in os.walk(directory, followlinks=False):
        for name in [*names, *files]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ModelError(f"{path} is a link that leaves the model directory")
            if path.is_symlink() and path.is_dir():
                raise ModelError(f"{path} is a link to a directory; a model has plain directories")
        for name in files:
            path = Path(folder, name)
            if not path.is_file():
                raise ModelError(f"{path} is not a regular file")
            if path.suffix.lower() in REFUSED_SUFFIXES:
                raise ModelError(f"{path} is of a kind that can run code when loaded; serve safetensors")
            found.append(PurePosixPath(path.relative_to(directory)))
    if not 0 < len(found) <= MAX_FILES:
        raise ModelError(f"{directory} has {len(found)} files; a model has 1 to {MAX_FILES}")
    return sorted(found, key=str)


def _hash(directory: Path, path: PurePosixPath) -> File:
    with Path(directory, path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        size = os.fstat(file.fileno()).st_size
    return File(path=str(path), size=size, sha256=digest.hexdigest())
