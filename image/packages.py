"""Debian's packages that an image is made of, each held to the version and SHA-256 that `image/packages.lock` names.

They come from wherever this machine's apt finds them; what is not byte for byte the locked one is refused.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from image.errors import MISSING, ImageError
from image.tools import run

KERNEL = re.compile(r"linux-image-[0-9].*-cloud-amd64")
STUB = "systemd-boot-efi"
_LINE = re.compile(r"([a-z0-9][a-z0-9+.-]+)=([A-Za-z0-9.+~:-]+) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package, as the lock names it."""

    name: str
    version: str
    sha256: str

    @property
    def pin(self) -> str:
        return f"{self.name}={self.version}"

    def in_folder(self, folder: Path) -> Path | None:
        """The file of this name and version, as apt calls it."""
        version = self.version.replace(":", "%3a")
        return next(folder.glob(f"{self.name}_{version}_*.deb"), None)


def parse_lock(text: str) -> tuple[Package, ...]:
    """The packages of a lock: a line `name=version sha256` for each, and comments."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ImageError(
                f"line {number} of the packages' lock is not `name=version sha256`: {line[:80]!r}"
            )
        found.append(Package(name=match[1], version=match[2], sha256=match[3]))
    names = [package.name for package in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ImageError(f"the packages' lock names {', '.join(twice)} more than once")
    return tuple(found)


def lock_text(packages: tuple[Package, ...], *, head: str) -> str:
    """A lock, sorted by name."""
    lines = [
        f"{package.pin} {package.sha256}" for package in sorted(packages, key=lambda package: package.name)
    ]
    return "".join(f"{line}\n" for line in [*(f"# {line}" for line in head.splitlines()), *lines])


@dataclass(frozen=True, slots=True, kw_only=True)
class Debian:
    """The locked packages, and the folder where their files are kept."""

    packages: tuple[Package, ...]
    cache: Path

    @classmethod
    def locked(cls, project: Path) -> Debian:
        """What the lock in the project's folder names."""
        lock = parse_lock((project / "image" / "packages.lock").read_text())
        return cls(packages=lock, cache=project / ".cache" / "image" / "packages")

    def digest(self) -> str:
        """Of what the base is made of."""
        return sha256(lock_text(self._base(), head="").encode()).hexdigest()

    def kernel(self) -> Package:
        """The one kernel."""
        found = [package for package in self.packages if KERNEL.fullmatch(package.name)]
        if len(found) != 1:
            raise ImageError(
                f"the packages' lock names {len(found)} kernels (linux-image-…-cloud-amd64), not one"
            )
        return found[0]

    def stub(self) -> Package:
        """What makes a kernel, an initrd and a command line one EFI program."""
        return next(package for package in self.packages if package.name == STUB)

    def fetch(self, packages: tuple[Package, ...]) -> list[Path]:
        """Their files, each with the locked hash."""
        self.cache.mkdir(parents=True, exist_ok=True)
        absent = [package.pin for package in packages if package.in_folder(self.cache) is None]
        if absent:
            download(absent, self.cache)
        return [self._checked(package) for package in packages]

    def unpack(self, package: Package, into: Path) -> Path:
        """The files of one package."""
        (file,) = self.fetch((package,))
        run("dpkg-deb", "--extract", file, into)
        return into

    def bootstrap(self, archive: Path, *, epoch: str) -> None:
        """Write a minimal Debian as a tar archive, without asking any mirror."""
        part = archive.with_suffix(".part.tar")
        local = archive.with_suffix(".packages")
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(mode=0o755)
        base = self._base()
        index = []
        for package, file in zip(base, self.fetch(base), strict=True):
            (local / file.name).symlink_to(file.resolve())
            control = run("dpkg-deb", "--field", file).rstrip("\n")
            size = file.stat().st_size
            index.append(f"{control}\nFilename: ./{file.name}\nSize: {size}\nSHA256: {package.sha256}\n\n")
        (local / "Packages").write_text("".join(index))
        names = ",".join(package.name for package in base)
        # Its own apt is left without sources: whatever a recipe installs later must be here already.
        run(
            "mmdebstrap", "--quiet", "--mode=root", "--variant=custom", f"--include={names}",
            "--setup-hook=mkdir -p \"$1/etc/apt\"", "--customize-hook=: > \"$1/etc/apt/sources.list\"",
            "", part, f"deb [trusted=yes] copy:{local.resolve()} ./",
            environment={"SOURCE_DATE_EPOCH": epoch},
        )  # fmt: skip
        part.rename(archive)
        shutil.rmtree(local)

    def _base(self) -> tuple[Package, ...]:
        apart = {self.kernel().name, STUB}
        return tuple(package for package in self.packages if package.name not in apart)

    def _checked(self, package: Package) -> Path:
        file = package.in_folder(self.cache)
        if file is None:
            raise ImageError(f"apt-get did not bring {package.pin}")
        found = sha256(file.read_bytes()).hexdigest()
        if found != package.sha256:
            file.unlink()
            raise ImageError(
                f"{file.name} has the SHA-256 {found}, the lock says {package.sha256}",
                "The package source serves other bytes under the same version: do not use it",
            )
        return file


def download(pins: list[str], folder: Path) -> None:
    done = subprocess.run(  # noqa: S603 - names that the lock's pattern lets through
        ["apt-get", "-o", "APT::Sandbox::User=root", "-qq", "download", *pins],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        errors = "; ".join(line for line in done.stderr.splitlines() if line.startswith("E: "))
        raise ImageError(
            f"apt-get does not find {pins[0] if len(pins) == 1 else 'some of the locked packages'} "
            f"({errors[-300:]})",
            "Run apt-get update; the sources must have Debian bookworm, bookworm-updates and bookworm-security, or "
            "Debian's snapshot of the lock's day; or lock what is there now: make image-packages",
            status=MISSING,
        )
