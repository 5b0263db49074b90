"""A model as one read-only disk: an EROFS image, and behind it the dm-verity tree by which the kernel checks each block.

The salt of the tree and the file system's UUID come from the model's id, so that the same files with the same id (and
the same `mkfs.erofs`) give the same bytes and the same root hash everywhere. There is no verity superblock: whoever opens
the image says everything, and nothing that is not authenticated is believed. docs/models.md has the layout.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from enclave_server.model.manifest import ModelError, ModelProblem
from enclave_server.verity import Verity, append_tree, computed_tree, data_blocks_of

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,200}@[A-Za-z0-9._-]{1,100}")


def salt_of(model_id: str) -> bytes:
    """The tree's salt: SHA-256 of the id, which is `repo@revision`."""
    if not _ID.fullmatch(model_id):
        raise ModelError(
            ModelProblem.ID, f"{model_id!r} is no repo@revision", advice="Give one, such as me/model@9f3c2d1"
        )
    return sha256(model_id.encode()).digest()


def make_image(directory: Path, out: Path, model_id: str) -> Verity:
    """Write the image of `directory` to `out`."""
    salt = salt_of(model_id)
    _check_alike(directory)
    if out.resolve().is_relative_to(directory.resolve()):
        raise _bad_image(f"{out} would lie in the model itself", "Write it elsewhere")
    partial = out.with_name(out.name + ".partial")
    try:
        _make_erofs(directory, partial, UUID(bytes=salt[:16]))
        image = append_tree(partial, salt)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return image


def verify_image(path: Path, root_hash: bytes, model_id: str) -> Verity:
    """Compute the tree of an image anew: it must be the one in the image, and have this root hash."""
    salt = salt_of(model_id)
    size = path.stat().st_size
    data_blocks = data_blocks_of(size)
    if data_blocks is None:
        raise _bad_image(f"{path} has {size} bytes, which is no image with its tree", "Copy it again")
    found, whole = computed_tree(path, data_blocks, salt)
    if not whole or found.root_hash != root_hash:
        raise _bad_image(
            f"{path} has not the root hash {root_hash.hex()} as {model_id}"
            + ("" if whole else ": its blocks and its hash tree contradict each other"),
            "Its bytes were changed, or root hash or id are another image's: make it again, or copy it again",
        )
    return found


def _make_erofs(directory: Path, out: Path, uuid: UUID) -> None:
    program = shutil.which("mkfs.erofs")
    if program is None:
        raise _bad_image("there is no mkfs.erofs", "Install erofs-utils")
    done = subprocess.run(  # noqa: S603 - found on the operator's own path
        [program, "--quiet", "-T0", f"-U{uuid}", "-x-1", "--all-root", out, directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise _bad_image(f"mkfs.erofs failed: {done.stderr.strip()[-300:]}", "Mend what it names")


def _check_alike(directory: Path) -> None:
    """Modes and links get into the image: they have to be the same wherever it is made."""
    for folder, _, files in os.walk(directory):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            status = path.lstat()
            plain = path.is_dir() or (path.is_file() and not path.is_symlink() and status.st_nlink == 1)
            if not plain or status.st_mode & 0o7777 != (0o755 if path.is_dir() else 0o644):
                raise ModelError(
                    ModelProblem.FILE,
                    f"{path} is a link, or has the mode {status.st_mode & 0o7777:o}; in an image files have 644 "
                    "and directories 755, so that it is the same everywhere",
                    advice=f"Copy the model with its links followed (cp -rL), then chmod -R u=rwX,go=rX {directory}",
                )


def _bad_image(detail: str, advice: str) -> ModelError:
    return ModelError(ModelProblem.IMAGE, detail, advice=advice)
