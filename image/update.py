"""Writes `image/packages.lock` anew, from what this machine's apt offers today: `python -m image.update` (make image-packages)."""

from __future__ import annotations

import re
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from image.errors import ImageError
from image.packages import STUB, Package, download, lock_text
from image.tools import check_tools, run

LOCK = Path(__file__).parent / "packages.lock"
KERNEL = "linux-image-6.12-cloud-amd64"  # it depends on the newest of its kind
WANTED = ("python3", "python3-venv", "ca-certificates", "libnuma1", "nftables", "tpm2-tools")
HEAD = """Made by `make image-packages`: Debian bookworm, bookworm-updates and bookworm-security of {day}.
Every package that the image, and the container it is made of, come from: name=version and the SHA-256 of its file."""


def main() -> None:
    check_tools("mmdebstrap", "apt-get")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        packages = _with_hashes([*_base(folder), _kernel(), (STUB, _shown(STUB)["Version"])], folder)
    LOCK.write_text(lock_text(packages, head=HEAD.format(day=f"{datetime.now(UTC):%Y-%m-%d}")))


def _base(folder: Path) -> list[tuple[str, str]]:
    """What apt installs, where asked for no more than is needed."""
    archive = folder / "base.tar"
    run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(WANTED)}", "bookworm", archive)
    with tarfile.open(archive) as tar:
        status = tar.extractfile("./var/lib/dpkg/status")
        entries = [] if status is None else status.read().decode().split("\n\n")
    fields = [_fields(entry) for entry in entries if entry.strip()]
    return [(entry["Package"], entry["Version"]) for entry in fields]


def _kernel() -> tuple[str, str]:
    match = re.search(r"(linux-image-\S+) \(= (\S+)\)", _shown(KERNEL)["Depends"])
    if match is None:
        raise ImageError(f"{KERNEL} does not name its kernel")
    return match[1], match[2]


def _shown(name: str) -> dict[str, str]:
    return _fields(run("apt-cache", "show", "--no-all-versions", name))


def _fields(entry: str) -> dict[str, str]:
    pairs = (line.split(": ", 1) for line in entry.splitlines() if ": " in line and line[0].isalpha())
    return {pair[0]: pair[1] for pair in pairs}


def _with_hashes(wanted: list[tuple[str, str]], folder: Path) -> tuple[Package, ...]:
    download([f"{name}={version}" for name, version in wanted], folder)
    found = []
    for name, version in wanted:
        package = Package(name=name, version=version, sha256="")
        file = package.in_folder(folder)
        if file is None:
            raise ImageError(f"apt-get did not bring {package.pin}")
        found.append(Package(name=name, version=version, sha256=sha256(file.read_bytes()).hexdigest()))
    return tuple(found)


if __name__ == "__main__":
    try:
        main()
    except ImageError as exc:
        sys.exit(str(exc))
