"""Where two images differ is named: the first file, and what inside it."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from image import cpio
from image.build import DESCRIPTION, build_id, read_description
from image.cli import cli
from image.errors import ImageError
from image.pe import add_sections
from image.repro import _some, different_paths, first_difference
from image.root import make_root
from tests.image.test_pe import program

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs is not installed")


def make_image(folder: Path, *, gateway: bytes = b"code", mode: int = 0o644, init: bytes = b"init") -> Path:
    """A folder with the files of an image, as small as they can be."""
    tree = folder.with_name(f"{folder.name}-tree")
    for name, content in (("opt/gateway.py", gateway), ("etc/passwd", b"root"), ("zz", b"")):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode if name == "zz" else 0o644)
    folder.mkdir()
    make_root(tree, folder / "root.img")
    initrd = cpio.write_cpio([cpio.file("init", init), cpio.file("lib/x", b"x")])
    (folder / "initrd").write_bytes(initrd)
    (folder / "vmlinuz").write_bytes(b"kernel")
    (folder / "enclave.efi").write_bytes(add_sections(program(), {".initrd": initrd, ".linux": b"kernel"}))
    (folder / DESCRIPTION).write_text(json.dumps({"v": 1, "source": "abc"}))
    return folder


def test_named(tmp_path: Path) -> None:
    """A path in the root, a member of the initrd, a section of the UKI, a byte of the rest; and nothing where all is the same."""
    one = make_image(tmp_path / "one")
    assert first_difference(one, make_image(tmp_path / "same")) is None
    assert (
        first_difference(one, make_image(tmp_path / "code", gateway=b"evil"))
        == "root.img, /opt/gateway.py (content)"
    )
    assert first_difference(one, make_image(tmp_path / "mode", mode=0o755)) == "root.img, /zz (mode)"
    assert first_difference(one, make_image(tmp_path / "init", init=b"other")) == "initrd, init"
    kernel = make_image(tmp_path / "kernel")
    (kernel / "vmlinuz").write_bytes(b"kerneL")
    assert first_difference(one, kernel) == "vmlinuz, from byte 5"
    uki = make_image(tmp_path / "uki")
    (uki / "enclave.efi").write_bytes(add_sections(program(), {".initrd": b"", ".linux": b"kernel"}))
    assert first_difference(one, uki) == "enclave.efi, .initrd"


def test_causes_come_first(tmp_path: Path) -> None:
    """Compiled modules and lists of digests are named after what they are made of; three are named, and the rest counted."""
    one, other = tmp_path / "one", tmp_path / "other"
    names = ("a/RECORD", "a/__pycache__/x.pyc", "b/x.py", "c")
    for number, tree in enumerate((one, other)):
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(bytes([number]))
    found = list(different_paths(one, other))
    assert found == [
        "/b/x.py (content)",
        "/c (content)",
        "/a/RECORD (content)",
        "/a/__pycache__/x.pyc (content)",
    ]
    assert _some(found) == "/b/x.py (content), /c (content), /a/RECORD (content) and 1 more"


def test_tree_of_the_root(tmp_path: Path) -> None:
    """Where the files are the same and the rest of the disk is not, the byte is named."""
    one, other = (make_image(tmp_path / name, gateway=b"x" * 9000) for name in ("one", "other"))
    size = (other / "root.img").stat().st_size
    with (other / "root.img").open("r+b") as file:
        file.seek(size - 1)
        file.write(b"\1")
    assert first_difference(one, other) == f"root.img, from byte {size - 1}"


def test_missing_file_and_other_description(tmp_path: Path) -> None:
    """A file that only one has is named, and so is a field of image.json."""
    one, other = make_image(tmp_path / "one"), make_image(tmp_path / "other")
    (other / DESCRIPTION).write_text(json.dumps({"v": 1, "source": "abcd"}))
    assert first_difference(one, other) == "image.json, source"
    (other / "vmlinuz").unlink()
    assert first_difference(one, other) == f"vmlinuz is only in {one}"


def test_no_image(tmp_path: Path) -> None:
    """A folder without image.json, or with another's, is refused in words."""
    result = CliRunner().invoke(cli, ["repro", str(tmp_path)])
    assert isinstance(result.exception, ImageError)
    for content in (b"", b"[]", b'{"v": 2}', b"\xff"):
        (tmp_path / DESCRIPTION).write_bytes(content)
        with pytest.raises(ImageError):
            read_description(tmp_path)


def test_build_id() -> None:
    """It is over the names and digests of the files but the disk for clouds, in the order of their names, and nothing else."""
    files = {"b": {"sha256": "00", "size": 1}, "a": {"sha256": "11", "size": 2}}
    with_disk = {"disk.raw": {"sha256": "22", "size": 3}, **files}
    assert build_id(files) == build_id(with_disk) == sha256(b"a 11\nb 00\n").hexdigest()
