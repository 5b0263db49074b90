"""Debian's packages: the lock names each once, and other bytes under the same name are refused."""

from __future__ import annotations

import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.errors import ImageError
from image.packages import STUB, Debian, Package, lock_text, parse_lock

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Package(name="nftables", version="1:1.0.6-2+deb12u2", sha256=sha256(b"deb").hexdigest())


def test_the_projects_own_lock() -> None:
    """It names one kernel, one stub and what else an image is made of, and nothing twice."""
    debian = Debian.locked(ROOT)
    assert debian.kernel().name.startswith("linux-image-6.12.")
    assert debian.stub().name == STUB
    assert {"python3", "nftables", "tpm2-tools", "libnuma1"} <= {package.name for package in debian.packages}
    text = (ROOT / "image" / "packages.lock").read_text()
    assert parse_lock(lock_text(debian.packages, head="")) == debian.packages
    assert "://" not in text


def test_dockerfile_agrees_with_the_lock() -> None:
    """The one version that Dockerfile.enclave names is the lock's, so that its `apt-get install` needs no mirror."""
    (libnuma,) = (package for package in Debian.locked(ROOT).packages if package.name == "libnuma1")
    assert f"ARG LIBNUMA={libnuma.version}\n" in (ROOT / "Dockerfile.enclave").read_text()


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text is a lock or is refused in words."""
    with suppress(ImageError):
        parse_lock(text)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("nftables=1 00", "line 1"),
        (f"# fine\n\nnft ables=1 {'0' * 64}", "line 3"),
        (f"x-y=1 {'0' * 64}\nx-y=2 {'1' * 64}", "x-y more than once"),
    ],
)
def test_refused(lines: str, why: str) -> None:
    """A line of another shape, and a name that stands there twice, are refused and named."""
    with pytest.raises(ImageError, match=why):
        parse_lock(lines)


def test_other_bytes_are_refused_and_removed(tmp_path: Path) -> None:
    """A file of the right name with other bytes is refused, and not found again by the next run."""
    debian = Debian(packages=(PACKAGE,), cache=tmp_path)
    file = tmp_path / "nftables_1%3a1.0.6-2+deb12u2_amd64.deb"
    file.write_bytes(b"deb")
    assert debian.fetch((PACKAGE,)) == [file]
    file.write_bytes(b"bed")
    with pytest.raises(ImageError, match=f"the lock says {PACKAGE.sha256}"):
        debian.fetch((PACKAGE,))
    assert not file.exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt-get is not installed")
def test_what_no_source_has(tmp_path: Path) -> None:
    """A version that apt does not find is named, with the sources it should come from; the status says: skipped."""
    absent = Package(name="attested-inference-nobody-has", version="1", sha256="0" * 64)
    with pytest.raises(ImageError, match=r"attested-inference-nobody-has=1.*bookworm-security") as refused:
        Debian(packages=(absent,), cache=tmp_path).fetch((absent,))
    assert refused.value.status == 77
