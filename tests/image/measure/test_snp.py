"""SEV-SNP launch digests: the library's own published values, and what moves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sevsnpmeasure import guest

from image.errors import ImageError
from image.measure.snp import Direct, launch_digests, takes_hashes
from tests.image.measure.files import snp_firmware

# the hash of the firmware in sev-snp-measure's tests, and digests that they expect
PUBLISHED = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
EXPECTED = {
    (
        "",
        0x21,
    ): "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198",
    (
        "",
        0x1,
    ): "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5",
    (
        "console=ttyS0 loglevel=7",
        0x21,
    ): "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977",
    (
        "console=ttyS0 loglevel=7",
        0x1,
    ): "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa",
}


@pytest.fixture
def firmware(tmp_path: Path) -> Path:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(snp_firmware())
    return path


def direct(folder: Path, *, kernel: bytes = b"", initrd: bytes = b"", line: str = "") -> Direct:
    (folder / "vmlinuz").write_bytes(kernel)
    (folder / "initrd").write_bytes(initrd)
    return Direct(kernel=folder / "vmlinuz", initrd=folder / "initrd", command_line=line)


@pytest.mark.parametrize(("line", "features"), EXPECTED)
def test_published_values(
    firmware: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, features: int
) -> None:
    """With the published hash in the place of our firmware's, the digests are those published for the same layout."""
    real = guest.snp_calc_launch_digest

    def seeded(*arguments: Any) -> bytes:
        return bytes(real(*arguments[:7], PUBLISHED, *arguments[8:]))

    monkeypatch.setattr(guest, "snp_calc_launch_digest", seeded)
    (found,) = launch_digests(
        firmware, direct(tmp_path, line=line), cpus=[1], cpu_types=["EPYC-v4"], guest_features=[features]
    )
    assert found.digest.hex() == EXPECTED[line, features]


def digests(firmware: Path, files: Direct, **matrix: Sequence[Any]) -> list[bytes]:
    return [found.digest for found in launch_digests(firmware, files, **{"cpus": [2], **matrix})]


def test_the_matrix(firmware: Path, tmp_path: Path) -> None:
    """vCPUs, CPU types and guest features: under QEMU each combination has a digest of its own, and no other VMM has it."""
    files = direct(tmp_path, kernel=b"k")
    found = launch_digests(
        firmware,
        files,
        cpus=[1, 8],
        cpu_types=["EPYC-v4", "EPYC-Genoa"],
        vmms=["QEMU", "ec2", "gce"],
        guest_features=[0x1, 0x21],
    )
    assert len(found) == 24
    assert len({item.digest for item in found if item.vmm == "QEMU"}) == 8
    assert len({item.vmm for item in found if item.digest == found[0].digest}) == 1
    assert str(found[0]) == "1 vCPUs of EPYC-v4, QEMU, guest features 0x1"


def test_every_file_is_covered(firmware: Path, tmp_path: Path) -> None:
    """Firmware, kernel, initrd and command line."""
    base = {"kernel": b"k", "initrd": b"i", "line": "ro"}
    changed: list[dict[str, Any]] = [base, *({**base, name: type(value)()} for name, value in base.items())]
    found = [digests(firmware, direct(tmp_path, **files), cpu_types=["EPYC-Turin"])[0] for files in changed]
    firmware.write_bytes(b"\1" + firmware.read_bytes()[1:])
    found += digests(
        firmware, direct(tmp_path, kernel=b"k", initrd=b"i", line="ro"), cpu_types=["EPYC-Turin"]
    )
    assert len(set(found)) == 5


@pytest.mark.parametrize(
    "content",
    [snp_firmware(hashes=False), b"", bytes(4096), snp_firmware()[:-1]],
    ids=["plain", "no", "0", "cut"],
)
def test_firmware_that_checks_no_hashes(tmp_path: Path, content: bytes) -> None:
    """Then the host could swap the kernel: there is no digest for it."""
    path = tmp_path / "x.fd"
    path.write_bytes(content)
    assert not takes_hashes(path)
    with pytest.raises(ImageError, match="does not check"):
        launch_digests(path, direct(tmp_path), cpus=[1])


def test_unknown_names(firmware: Path, tmp_path: Path) -> None:
    """A CPU type or a VMM that nobody knows."""
    for matrix in ({"cpu_types": ["EPYC-Naples"]}, {"vmms": ["bhyve"]}):
        with pytest.raises(ImageError, match="Known are"):
            digests(firmware, direct(tmp_path), **matrix)
