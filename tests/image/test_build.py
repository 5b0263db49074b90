"""The VM's image: built twice from nothing to the same bytes, with nothing in it that should not be there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from enclave_server.verity import computed_tree
from image.build import UKI, Target, build_id, build_image, read_description
from image.cpio import read_cpio
from image.guest.cmdline import parse_command_line
from image.pe import read_sections
from image.repro import build_again, first_difference

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("apt-get", "buildah", "cpio", "mkfs.erofs", "fsck.erofs", "mmdebstrap")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, TOOLS)),
        reason=f"root and {', '.join(TOOLS)} are needed",
    ),
    pytest.mark.skipif(not list(ROOT.glob("build/wheels/fastapi-*.whl")), reason="no wheels: `make wheels`"),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image without an engine."""
    folder = tmp_path_factory.mktemp("image") / "out"
    config = (ROOT / "deploy" / "enclave.toml").read_bytes()
    build_image(folder, config=config, target=Target.GATEWAY, disk=True)
    return folder


def test_twice_the_same(out: Path, tmp_path: Path) -> None:
    """A clone elsewhere, on a machine of another name and under another umask, makes the same bytes; one more byte is named."""
    again = tmp_path / "again"
    build_again(out, again)
    assert first_difference(out, again) is None
    with (again / "vmlinuz").open("ab") as file:
        file.write(b"\0")
    assert first_difference(out, again) == f"vmlinuz, from byte {(out / 'vmlinuz').stat().st_size}"


def test_described(out: Path) -> None:
    """image.json, the command line and the files say the same of each other."""
    described, measured = read_description(out), parse_command_line((out / "cmdline").read_bytes())
    assert described["id"] == build_id(described["files"])
    assert {path.name for path in out.iterdir()} == {*described["files"], "image.json"}
    verity, whole = computed_tree(out / "root.img", measured.root.data_blocks, measured.root.salt)
    assert whole
    assert verity.root_hash == measured.root.root_hash
    sections = read_sections((out / "enclave.efi").read_bytes())
    for section, name in UKI.items():
        assert sections[section] == (out / name).read_bytes()


def test_what_is_inside(out: Path, tmp_path: Path) -> None:
    """Python and the gateway; no shell, no busybox, no package manager, no login, nothing set-uid, in initrd and root."""
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["fsck.erofs", f"--extract={tree}", out / "root.img"], check=True, capture_output=True)
    names = {path.name for path in tree.rglob("*")}
    initrd = {member.name.rpartition("/")[2] for member in read_cpio((out / "initrd").read_bytes())}
    unwanted = {
        "sh",
        "bash",
        "dash",
        "busybox",
        "apt-get",
        "dpkg",
        "login",
        "sshd",
        "su",
        "sudo",
        "modprobe",
        "kexec",
    }
    assert not unwanted & (names | initrd)
    assert {"enclave-server", "nft", "tpm2_quote", "start.py"} <= names
    assert not [path for path in tree.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o6000]


def test_initrd_is_enough(out: Path, tmp_path: Path) -> None:
    """Unpacked, it has every module that its list names, and its Python imports all that process 1 needs, with nothing else there."""
    members = {member.name: member for member in read_cpio((out / "initrd").read_bytes())}
    listed = members["usr/lib/enclave/modules.list"].content.decode().splitlines()
    assert listed
    assert {path.lstrip("/") for path in listed} <= members.keys()
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["cpio", "-idm", "--quiet"], input=(out / "initrd").read_bytes(), cwd=unpacked, check=True)
    home = "/usr/lib/enclave"
    code = f"import sys; sys.path.insert(0, {home!r}); import image.guest.init as i; print(i.sha256(b'').hexdigest()[:8])"
    python = ["/usr/sbin/chroot", str(unpacked), "/usr/bin/python3.11", "-ISB", "-c", code]
    assert subprocess.run(python, env={}, capture_output=True, text=True, check=True).stdout == "e3b0c442\n"
