"""The initrd's archive: read back as it was written, by us and by cpio, and the same in every order."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.cpio import Member, file, folder, link, read_cpio, write_cpio
from image.errors import ImageError

NAMES = st.lists(st.sampled_from(["a", "b", "usr", "é"]), min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(NAMES, st.binary(max_size=9)))
def test_read_back_in_any_order(contents: dict[str, bytes]) -> None:
    """The order in which members are given changes nothing; each is read back, and a folder comes before what is in it."""
    members = [file(f"{name}.f", content) for name, content in contents.items()]
    archive = write_cpio(members)
    assert archive == write_cpio(reversed(members))
    found = list(read_cpio(archive))
    assert {member.name: member for member in members}.items() <= {m.name: m for m in found}.items()
    names = [member.name for member in found]
    assert all(name.rpartition("/")[0] in ("", *names[:number]) for number, name in enumerate(names))


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_unpacked_by_cpio(tmp_path: Path) -> None:
    """GNU cpio makes the files, folders and links that were meant."""
    archive = write_cpio(
        [
            file("usr/bin/x", b"\0" * 5, executable=True),
            link("init", "usr/bin/x"),
            folder("new"),
            file("y", b""),
        ]
    )
    subprocess.run(["cpio", "-idm", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_bytes() == b"\0" * 5
    assert (tmp_path / "usr/bin/x").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "y").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize("cut", [0, 50, 120, -130])
def test_cut_off(cut: int) -> None:
    """An archive without its end is refused."""
    archive = write_cpio([Member(name="x", mode=0o100644, content=b"1234")])
    with pytest.raises(ImageError, match="no cpio archive at byte"):
        list(read_cpio(archive[:cut]))
