"""Dockerfile.enclave's file system, built with buildah on a Debian made of pinned packages: no daemon, no registry, no network."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from image.packages import Debian

EPOCH = "315532800"  # of every file and of the image itself
_BASE = "localhost/enclave-base"


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds in `context`, a folder with Dockerfile.enclave and what it copies; keeps images in `store`."""

    context: Path
    store: Path

    def buildah(self, *arguments: str | Path) -> str:
        """What buildah prints."""
        store = ("--root", self.store / "store", "--runroot", self.store / "run")
        done = subprocess.run(  # noqa: S603 - our own arguments
            ["buildah", *store, *arguments],  # noqa: S607 - as the caller finds it
            cwd=self.context,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def base(self, debian: Debian) -> str:
        """Debian with Python, of the very packages that the lock names: an image that nobody else needs to have."""
        self.store.mkdir(parents=True, exist_ok=True)
        name = f"{_BASE}:{debian.digest()[:16]}"
        with (self.store / "lock").open("w") as lock:
            flock(lock, LOCK_EX)  # builds that run beside each other share it
            if name not in self.buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
                archive, recipe = self.store / "base.tar", self.store / "Dockerfile"
                debian.bootstrap(archive, epoch=EPOCH)
                recipe.write_text(f"FROM scratch\nADD {archive.name} /\n")
                self.buildah(
                    "bud", "--quiet", "--timestamp", EPOCH, "--tag", name, "--file", recipe, self.store
                )
                archive.unlink()
        return name

    def build(self, target: str, base: str) -> str:
        """The image's id. Nothing is taken from an earlier build."""
        shape = ("--format", "oci", "--isolation", "chroot", "--timestamp", EPOCH)
        fresh = ("--no-cache", "--pull-never", "--build-arg", f"BASE={base}")
        file = ("--file", "Dockerfile.enclave", "--target", target, "--tag", f"localhost/enclave-{target}")
        written = self.buildah("bud", "--quiet", *shape, *fresh, *file, ".")
        return written.splitlines()[-1]

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """The image's file system, to be written to; nothing of that is left."""
        container = self.buildah("from", "--pull-never", image)
        try:
            yield Path(self.buildah("mount", container))
        finally:
            self.buildah("rm", container)
