"""The model's files, and the digest that stands for all of them.

The manifest lists every file below the directory with its SHA-256; the model digest is the SHA-256 of the manifest's
RFC 8785 text (docs/protocol.md §5). Hashing proves what was read once; docs/models.md says what keeps it so.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import NoReturn, TypeVar

import rfc8785

from enclave_server.mendable import MendableError

T = TypeVar("T")
R = TypeVar("R")
Halted = Callable[
    [], bool
]  # asked now and then by work that should end soon when there is no more use for it

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
SIGNATURE = "model.sig"  # at the top: it is over the other files, and no part of the model
_CHUNK = 1024 * 1024  # hashlib lets other threads run while it works on so much


class ModelProblem(StrEnum):
    """What a model is refused for; docs/models.md says what to do."""

    DIRECTORY = "model.directory"
    FILE = "model.file"
    CHANGED = "model.changed"
    DIGEST = "model.digest"
    KEY = "model.key"
    SIGNATURE = "model.signature"
    SIGNATURE_FORMAT = "model.signature_format"
    SIGNED_FILES = "model.signed_files"
    ID = "model.id"
    IMAGE = "model.image"
    PACK = "model.pack"
    PACK_KEY = "model.pack_key"
    PLACE = "model.place"
    NOTHING_EXPECTED = "model.nothing_expected"


class ModelError(MendableError):
    """The model is not one that this gateway serves."""

    def __init__(self, problem: ModelProblem, detail: str, *, advice: str) -> None:
        super().__init__(problem, detail)
        self.problem, self.detail, self.advice = problem, detail, advice

    def __str__(self) -> str:
        return f"[{self.problem}] {self.detail}. {self.advice}"


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


def read_manifest(
    directory: Path, *, threads: int | None = None, stop: threading.Event | None = None
) -> Manifest:
    """Hash every file below `directory` but its signature on all cores. A file that changes meanwhile is refused.

    Once `stop` is set, nobody waits for it: it ends soon, with InterruptedError."""
    paths = sorted(list_files(directory), key=lambda path: -_size(directory, path))  # none ends alone
    hashed = on_all_cores(
        lambda path, halted: _hash(directory, path, halted), paths, threads=threads, stop=stop
    )
    return Manifest(tuple(sorted(hashed, key=lambda file: file.path)))


def on_all_cores(
    work: Callable[[T, Halted], R],
    items: Sequence[T],
    *,
    threads: int | None = None,
    stop: threading.Event | None = None,
) -> list[R]:
    """`work` for each item. When one fails, the others are halted, and its error is raised; once `stop` is set, InterruptedError."""
    failed = threading.Event()

    def halted() -> bool:
        return failed.is_set() or (stop is not None and stop.is_set())

    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        waiting = [pool.submit(work, item, halted) for item in items]
        for future in wait(waiting, return_when=FIRST_EXCEPTION).done:
            if (error := future.exception()) is not None:
                failed.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise error
        return [future.result() for future in waiting]


def check_model(directory: Path, expected: str) -> Manifest:
    """The manifest of `directory`, if its digest is `expected` (hex)."""
    manifest = read_manifest(directory)
    check_digest(manifest, expected, directory)
    return manifest


def check_digest(manifest: Manifest, expected: str, place: Path) -> None:
    """Refuse a manifest, of files in `place`, whose digest is not `expected` (hex)."""
    if manifest.digest().hex() != expected:
        raise ModelError(
            ModelProblem.DIGEST,
            f"the model in {place} has digest {manifest.digest().hex()}, the settings demand {expected}",
            advice="A file was changed, added or removed, or model_digest is that of another model",
        )


def stamps_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """What the file system says of every file and directory: whatever is written, replaced, added or removed changes it."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, _, files in os.walk(directory, onerror=_unreadable):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            try:
                status = path.stat()
            except OSError as exc:
                _unreadable(exc)
            found[str(path)] = (status.st_dev, status.st_ino, *_version(status))
    return found


def check_unchanged(directory: Path, before: dict[str, tuple[int, ...]]) -> None:
    """Refuse a directory in which anything is not as it was."""
    now = stamps_of(directory)
    changed = sorted(path for path in now.keys() | before.keys() if now.get(path) != before.get(path))
    if changed:
        raise _changed(Path(changed[0]), "changed while the engine loaded it")


def list_files(directory: Path) -> list[PurePosixPath]:
    """The files that count, by their names and kinds alone: refuses what no model has, and reads nothing."""
    if not directory.is_dir():
        raise ModelError(
            ModelProblem.DIRECTORY,
            f"there is no model directory {directory}",
            advice="Mount the model, or mend model_dir",
        )
    root, found = directory.resolve(), []
    for folder, names, files in os.walk(directory, followlinks=False, onerror=_unreadable):
        for path in (Path(folder, name) for name in [*names, *files]):
            _check_link(path, root)
        for path in (Path(folder, name) for name in files):
            _check_kind(path)
            found.append(PurePosixPath(path.relative_to(directory)))
    found = [path for path in found if str(path) != SIGNATURE]
    if not 0 < len(found) <= MAX_FILES:
        raise ModelError(
            ModelProblem.DIRECTORY,
            f"{directory} has {len(found)} files; a model has 1 to {MAX_FILES}",
            advice="Name the directory in which the model's config.json is",
        )
    return sorted(found, key=str)


def _check_link(path: Path, root: Path) -> None:
    if not path.is_symlink():
        return
    advice = "Copy the model with its links followed: cp -rL"
    if not path.resolve().is_relative_to(root):
        raise ModelError(
            ModelProblem.FILE, f"{path} is a link that leaves the model directory", advice=advice
        )
    if path.is_dir():
        raise ModelError(ModelProblem.FILE, f"{path} is a link to a directory", advice=advice)


def _check_kind(path: Path) -> None:
    if not path.is_file():
        raise ModelError(ModelProblem.FILE, f"{path} is not a regular file", advice="Remove it")
    if path.suffix.lower() in REFUSED_SUFFIXES:
        raise ModelError(
            ModelProblem.FILE,
            f"{path} is of a kind that can run code when loaded",
            advice="Remove it, and serve safetensors",
        )
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ModelError(
            ModelProblem.FILE, f"{str(path)!r} is not named in UTF-8", advice="Rename it"
        ) from None


def _unreadable(error: OSError) -> NoReturn:
    raise ModelError(
        ModelProblem.FILE,
        f"{error.filename} cannot be read ({error.strerror})",
        advice="Let the gateway's user read every file of the model",
    ) from error


def _size(directory: Path, path: PurePosixPath) -> int:
    try:
        return Path(directory, path).stat().st_size
    except OSError as exc:
        _unreadable(exc)


def _hash(directory: Path, path: PurePosixPath, halted: Halted) -> File:
    digest, size, buffer = hashlib.sha256(), 0, memoryview(bytearray(_CHUNK))
    try:
        with Path(directory, path).open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            while size <= before.st_size and (read := file.readinto(buffer)):
                digest.update(buffer[:read])
                size += read
                if halted():
                    raise InterruptedError
            after = os.fstat(file.fileno())
    except InterruptedError:
        raise
    except OSError as exc:
        _unreadable(exc)
    if size != before.st_size or _version(before) != _version(after):
        raise _changed(Path(directory, path), "changed while it was read")
    return File(path=str(path), size=size, sha256=digest.hexdigest())


def _changed(path: Path, how: str) -> ModelError:
    return ModelError(
        ModelProblem.CHANGED,
        f"{path} {how}",
        advice="Let nobody write to the model, best by a read-only mount, and start again",
    )


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
