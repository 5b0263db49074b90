"""Programs that building an image takes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from image.errors import MISSING, ImageError

PACKAGE_OF = {  # what `apt-get install` calls it
    "apt-get": "apt",
    "buildah": "buildah",
    "dpkg-deb": "dpkg",
    "fsck.erofs": "erofs-utils",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
}


def check_tools(*names: str) -> None:
    """All of them are here, and so are root's rights."""
    missing = sorted({PACKAGE_OF[name] for name in names if shutil.which(name) is None})
    if missing or os.geteuid() != 0:
        raise ImageError(
            f"nothing was built: {', '.join(missing) or 'root'} is needed",
            f"Debian has it: apt-get install {' '.join(missing)}" if missing else "",
            status=MISSING,
        )


def run(*command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What the program prints. Its complaint is the error."""
    done = subprocess.run(  # noqa: S603 - our own arguments
        command,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(environment or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ImageError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout
