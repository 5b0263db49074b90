"""Kernel modules: each after those that it depends on, and none that is built in."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from image.errors import ImageError
from image.kernel import read_kernel

MODULES = {
    "dm-verity": "dm-mod,dm-bufio",
    "dm-bufio": "dm-mod",
    "dm-mod": "",
    "erofs": "libcrc32c",
    "other": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpacked kernel's package, as much of one as is read."""
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot" / "vmlinuz-6.12.1-x").write_bytes(b"kernel")
    folder = tmp_path / "lib" / "modules" / "6.12.1-x"
    (folder / "kernel").mkdir(parents=True)
    (folder / "modules.builtin").write_text("kernel/drivers/nvme/host/nvme.ko\nkernel/lib/libcrc32c.ko\n")
    for name, depends in MODULES.items():
        content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        (folder / "kernel" / f"{name}.ko.xz").write_bytes(lzma.compress(content))
    return tmp_path


def test_in_an_order_that_works(tree: Path) -> None:
    """What a module depends on comes first, once; what is built in is left out; - and _ are one."""
    kernel = read_kernel(tree, ["dm_verity", "nvme", "erofs", "dm-mod"])
    assert [name for name, _ in kernel.modules] == ["dm_mod", "dm_bufio", "dm_verity", "erofs"]
    assert kernel.release == "6.12.1-x"
    assert all(content.startswith(b"\x7fELF") for _, content in kernel.modules)


def test_named_when_it_is_not_there(tree: Path) -> None:
    """A module that the kernel does not have is named."""
    with pytest.raises(ImageError, match="no module tdx_guest"):
        read_kernel(tree, ["tdx_guest"])
