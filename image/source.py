"""The project's own files, as they are built: what git knows of, with the modes that git knows."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from image.container import EPOCH
from image.errors import ImageError
from image.tools import run

PROJECT = Path(__file__).resolve().parent.parent
_LOCKS = {  # whose wheels a stage of Dockerfile.enclave installs
    "gateway": ("requirements-server.lock",),
    "cpu": ("requirements-server.lock", "requirements-engine-cpu.lock"),
}
CHANGED = "-changed"  # behind a revision: and something that is not committed


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A copy of the project, and what it is a copy of."""

    folder: Path
    revision: str


def copy_source(into: Path, *, project: Path = PROJECT) -> Source:
    """The files that git tracks, or would: as they are now."""
    if not (project / "Dockerfile.enclave").exists() or not (project / ".git").exists():
        raise ImageError(
            f"{project} is no clone of the project",
            "Build the image in one: an installed package has not all",
        )
    revision = _git(project, "rev-parse", "HEAD").strip()
    if _git(project, "status", "--porcelain").strip():
        revision += CHANGED
    for name in _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        source = project / name
        if name and source.is_file():
            target = into / name
            target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    return Source(folder=into, revision=revision)


def clone_source(into: Path, revision: str, *, project: Path = PROJECT) -> None:
    """A clone at this revision, with the wheels and packages that are here already; their hashes are pinned."""
    run("git", "clone", "--quiet", "--no-checkout", project, into)
    _git(into, "checkout", "--quiet", "--detach", revision.removesuffix(CHANGED))
    if revision.endswith(CHANGED):
        for name in _git(into, "ls-files", "-z").split("\0"):
            (into / name).unlink(missing_ok=True) if name else None
        copy_source(into, project=project)
    for kept in (Path("build", "wheels"), Path(".cache", "image", "packages")):
        if (project / kept).exists():
            shutil.copytree(project / kept, into / kept, copy_function=_link_or_copy)


def add_wheels(source: Source, target: str, *, project: Path = PROJECT) -> None:
    """What Dockerfile.enclave installs, into the copy: the locks' wheels, and the project's own as it is in the copy."""
    wheels = source.folder / "build" / "wheels"
    wheels.mkdir(parents=True)
    locked = "".join((source.folder / lock).read_text() for lock in _LOCKS[target])
    for wheel in sorted((project / "build" / "wheels").glob("*.whl")):
        if sha256(wheel.read_bytes()).hexdigest() in locked:
            shutil.copyfile(wheel, wheels / wheel.name)
    if not any(wheels.iterdir()):
        raise ImageError("there are no wheels to install in the image", "Fetch them: make wheels")
    pip = (sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "-w", wheels, source.folder, environment={"SOURCE_DATE_EPOCH": EPOCH})


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _git(project: Path, *arguments: str) -> str:
    return run("git", "-C", project, *arguments)
