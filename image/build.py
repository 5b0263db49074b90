"""Builds the image: Dockerfile.enclave's file system as a disk that the kernel checks block by block, and what boots it.

The same revision, configuration and target make the same bytes on every machine. docs/rebuild.md tells how to see that.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from enclave_server.verity import BLOCK, Verity
from image.container import EPOCH, Builder
from image.disk import write_disk
from image.errors import ImageError
from image.guest import cmdline
from image.guest.cmdline import Measured, command_line
from image.guest.modules import NEEDED
from image.initrd import make_initrd
from image.kernel import Kernel, read_kernel
from image.packages import Debian
from image.pe import add_sections
from image.root import add_guest, make_root
from image.source import PROJECT, add_wheels, copy_source
from image.tools import check_tools, run

DESCRIPTION, DISK = "image.json", "disk.raw"
UKI = {
    ".cmdline": "cmdline",
    ".initrd": "initrd",
    ".linux": "vmlinuz",
}  # sections of enclave.efi, and the files in them
STEPS = 6  # that are told of
_CONFIG_BYTES = 1 << 20  # more is no configuration


class Target(StrEnum):
    """A stage of Dockerfile.enclave that makes an image."""

    CPU = "cpu"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What was built."""

    id: str
    description: dict[str, Any]


def _silent(_: str) -> None:
    """For whoever does not want to hear how far it is."""


def build_image(
    out: Path, *, config: bytes, target: Target, disk: bool, say: Callable[[str], None] = _silent
) -> Built:
    """Write the folder `out`, or leave what was there; `say` hears of each step before it is taken."""
    check_tools("apt-get", "buildah", "dpkg-deb", "fsck.erofs", "mkfs.erofs", "mmdebstrap")
    if not 0 < len(config) <= _CONFIG_BYTES or config.endswith(b"\0"):
        raise ImageError("the configuration is empty, longer than 1 MiB, or ends with a zero byte")
    if out.exists() and not (out / DESCRIPTION).exists() and (not out.is_dir() or any(out.iterdir())):
        raise ImageError(f"{out} exists and is no image", "Give another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=f".{out.name}-") as made:
        folder = Path(made) / "image"
        folder.mkdir(mode=0o755)
        built = _build(folder, Path(made), config, target, disk=disk, say=say)
        _replace(folder, out)
    return built


def _build(
    folder: Path, work: Path, config: bytes, target: Target, *, disk: bool, say: Callable[[str], None]
) -> Built:
    say("the project's files and wheels")
    source = copy_source(work / "source")
    add_wheels(source, target)
    debian = Debian.locked(PROJECT)
    say("the kernel and its modules")
    kernel = read_kernel(debian.unpack(debian.kernel(), work / "kernel"), NEEDED)
    builder = Builder(context=source.folder, store=PROJECT / ".cache" / "containers")
    say("Debian, from the packages in the lock")
    base = builder.base(debian)
    say(f"the container, stage vm-{target} of Dockerfile.enclave (minutes)")
    image = builder.build(f"vm-{target}", base)
    say("the root file system, its hash tree, and the initrd")
    with builder.mounted(image) as root:
        add_guest(root, source.folder)
        verity = make_root(root, folder / "root.img")
        (folder / "initrd").write_bytes(make_initrd(root, kernel))
        versions = _versions(root, kernel)
    (folder / "vmlinuz").write_bytes(kernel.vmlinuz)
    _write_config(folder, config, verity)
    say("the unified kernel image, and the disk" if disk else "the unified kernel image")
    stub = debian.unpack(debian.stub(), work / "stub") / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    uki = add_sections(stub.read_bytes(), {name: (folder / file).read_bytes() for name, file in UKI.items()})
    (folder / "enclave.efi").write_bytes(uki)
    if disk:
        write_disk(folder / DISK, uki=uki, root=folder / "root.img", config=folder / "config.img")
    description = {
        "v": 1,
        "source": source.revision,
        "source_date_epoch": int(EPOCH),
        "target": str(target),
        "versions": versions,
        "verity": {
            "root_hash": verity.root_hash.hex(),
            "data_blocks": verity.data_blocks,
            "salt": verity.salt.hex(),
        },
        "tools": {"erofs-utils": run("fsck.erofs", "-V").split()[-1]},  # the one that decides bytes
        "packages": [f"{package.pin} {package.sha256}" for package in debian.packages],
    }
    return _describe(folder, description)


def _write_config(folder: Path, config: bytes, verity: Verity) -> None:
    """The configuration, as a file and as a disk, and the command line that has its digest."""
    root = cmdline.Verity(root_hash=verity.root_hash, data_blocks=verity.data_blocks, salt=verity.salt)
    line = command_line(Measured(root=root, config=sha256(config).digest()))
    (folder / "cmdline").write_text(line)
    (folder / "enclave.toml").write_bytes(config)
    (folder / "config.img").write_bytes(padded(config))


def padded(config: bytes) -> bytes:
    """As it lies on its disk."""
    return config + bytes(-len(config) % BLOCK)


def _describe(folder: Path, description: dict[str, Any]) -> Built:
    files = {path.name: _described(path) for path in sorted(folder.iterdir())}
    built = Built(id=build_id(files), description={**description, "files": files})
    (folder / DESCRIPTION).write_text(json.dumps({"id": built.id, **built.description}, indent=1) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    return built


def build_id(files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over `name`, a space, the digest in hexadecimal and a line's end, of each file in the order of their names.

    The disk for clouds is left out: it is made of the others, so an image with it and one without it are the same build.
    """
    named = sorted((name, file["sha256"]) for name, file in files.items() if name != DISK)
    return sha256("".join(f"{name} {digest}\n" for name, digest in named).encode()).hexdigest()


def read_description(folder: Path) -> dict[str, Any]:
    """What `image.json` says of an image."""
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError) as exc:
        raise ImageError(f"{folder} is no image: {exc}", "Make one: enclave-server image build") from exc
    if not isinstance(description, dict) or description.get("v") != 1:
        raise ImageError(f"{folder / DESCRIPTION} is not of version 1")
    return description


def _versions(root: Path, kernel: Kernel) -> dict[str, str]:
    """Of what is inside, by the names of their installed metadata."""
    versions = {"kernel": kernel.release, "python": "3.11"}
    for name, environment, package in (
        ("gateway", "gateway", "attested_inference"),
        ("vllm", "engine", "vllm"),
    ):
        for place in root.glob(f"opt/{environment}/lib/python3.*/site-packages/{package}-*.dist-info"):
            versions[name] = place.name.removesuffix(".dist-info").rpartition("-")[2]
    return versions


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> dict[str, Any]:
    return {"sha256": digest_of(path), "size": path.stat().st_size}


def _replace(folder: Path, out: Path) -> None:
    """`out` is the old folder or the new one, and never a mixture."""
    if out.exists():
        old = folder.with_name("old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old)
    else:
        folder.rename(out)
