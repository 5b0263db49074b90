"""Real boots under QEMU's emulation with a TPM: each PCR that is predicted, beside the one that is.

The kernel and the stub are those of `image/packages.lock`. Firmware newer than the installed one is looked for in
`.cache/firmware/RELEASE` (the files of Debian's `ovmf` of that edk2 release).
"""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attestation.measure import Algorithm, parse_log
from attestation.measure import replay as replay_log
from image import machine
from image.cpio import file, folder, write_cpio
from image.disk import write_disk
from image.errors import ImageError
from image.kernel import read_kernel
from image.machine import OVMF, Boot, Firmware, check_machine, running
from image.measure import pcr
from image.measure.profiles import PROFILES
from image.measure.registers import replay
from image.packages import Debian
from image.pe import add_sections

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
BUSYBOX = Path("/bin/busybox")
LINE = "console=ttyS0 panic=-1 ro acpi_no_static_ssdt enclave.test=1 cryptomgr.notests"
INIT = b"""#!/busybox sh
/busybox mount -t sysfs s /sys
/busybox mount -t securityfs s /sys/kernel/security
echo
echo =LOG=
/busybox base64 /sys/kernel/security/tpm0/binary_bios_measurements
echo =END=
for bank in sha256 sha384; do
  for i in 4 5 9 11 12; do echo "PCR $bank $i $(/busybox cat /sys/class/tpm/tpm0/pcr-$bank/$i)"; done
done
echo =DONE=
/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What is booted."""

    kernel: Path
    initrd: Path
    stub: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the machine shows."""

    log: bytes
    pcrs: dict[tuple[str, str], bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    if not BUSYBOX.is_file():
        pytest.skip("a first process for these boots needs busybox: apt-get install busybox-static")
    place = tmp_path_factory.mktemp("boot")
    try:
        debian = Debian.locked(PROJECT)
        kernel = read_kernel(debian.unpack(debian.kernel(), place / "kernel"), [])
        (stub,) = debian.unpack(debian.stub(), place / "stub").rglob("linuxx64.efi.stub")
    except ImageError as exc:
        pytest.skip(f"Debian's kernel is not here: {exc}")
    members = [folder("sys"), file("busybox", BUSYBOX.read_bytes(), executable=True)]
    (place / "initrd").write_bytes(write_cpio([*members, file("init", INIT, executable=True)]))
    (place / "vmlinuz").write_bytes(kernel.vmlinuz)
    return Files(kernel=place / "vmlinuz", initrd=place / "initrd", stub=stub.read_bytes())


def firmware(release: str) -> Firmware:
    place = PROJECT / ".cache" / "firmware" / release
    found = (
        OVMF
        if release == "2022.11"
        else Firmware(code=place / "OVMF_CODE_4M.fd", variables=place / "OVMF_VARS_4M.fd")
    )
    if not found.code.is_file():
        pytest.skip(f"no firmware of edk2 {release} in {place}")
    return found


def boot(what: Boot, place: Path) -> Seen:
    """One boot; where emulation failed, one more."""
    try:
        check_machine(what)
    except ImageError as exc:
        pytest.skip(str(exc))
    for attempt in ("first", "second"):
        try:
            with running(what, place / attempt) as started:
                started.wait_for("=DONE=", seconds=150)
                return _seen(started.console)
        except ImageError:
            if attempt == "second":
                raise
    raise AssertionError


def _seen(console: str) -> Seen:
    text = console.replace("\r", "")
    log = re.search(r"=LOG=\n([A-Za-z0-9+/=\n]+)=END=", text)
    assert log is not None
    pcrs = {
        (bank, f"PCR{i}"): bytes.fromhex(value)
        for bank, i, value in re.findall(r"PCR (\w+) (\d+) (\w+)", text)
    }
    return Seen(log=b64decode(log[1]), pcrs=pcrs)


def assert_predicted(predicted: pcr.Pcrs, seen: Seen) -> None:
    """In both banks; and the log leads to what the TPM holds."""
    left = {item.register for item in predicted.left_out}
    for bank in ("sha256", "sha384"):
        values = {
            register: value
            for register, value in replay(predicted.events, bank).items()
            if register not in left
        }
        assert {register: seen.pcrs[bank, register] for register in values} == values
    measurement = predicted.measurement()
    assert measurement.matches({i: seen.pcrs["sha256", f"PCR{i}"] for i in (4, 5, 9, 11, 12)})
    replayed = replay_log(parse_log(seen.log), Algorithm.SHA384)
    assert all(seen.pcrs["sha384", f"PCR{i}"] == replayed[i] for i in (4, 5, 9))


@pytest.mark.parametrize("release", ["2022.11", "2025.02", "2026.08"])
def test_a_direct_boot(files: Files, tmp_path: Path, release: str) -> None:
    """PCRs 4, 9 and 12 of a kernel that QEMU 10 hands over, under three firmwares: patched or raw, suffix or prefix."""
    what = Boot(kernel=files.kernel, initrd=files.initrd, command_line=LINE, firmware=firmware(release))
    kernel, initrd = files.kernel.read_bytes(), files.initrd.read_bytes()
    profile = PROFILES[f"qemu10-edk2-{release}"]
    predicted = pcr.direct(kernel, initrd, LINE, profile, memory=what.memory << 20)
    assert_predicted(predicted, boot(what, tmp_path))


@pytest.mark.parametrize("release", ["2022.11", "2026.08"])
def test_a_unified_image_on_a_disk(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """PCRs 4, 9, 11 and 12 of what clouds boot, and its partition table: the same under each firmware."""
    kernel, initrd = files.kernel.read_bytes(), files.initrd.read_bytes()
    uki = add_sections(files.stub, {".cmdline": LINE.encode(), ".initrd": initrd, ".linux": kernel})
    for name in ("root", "config"):
        (tmp_path / name).write_bytes(bytes(4096))
    disk = tmp_path / "disk.raw"
    write_disk(disk, uki=uki, root=tmp_path / "root", config=tmp_path / "config")

    real = machine.qemu_command

    def from_disk(*arguments: Any, **named: Any) -> list[str]:
        line = real(*arguments, **named)
        return line[: line.index("-kernel")]

    monkeypatch.setattr(machine, "qemu_command", from_disk)
    what = Boot(
        kernel=files.kernel,
        initrd=files.initrd,
        command_line=LINE,
        firmware=firmware(release),
        disks={"disk": disk},
    )
    predicted = pcr.unified(uki, disk.read_bytes()[: 34 * 512])
    seen = boot(what, tmp_path)
    assert_predicted(predicted, seen)
    (table,) = (event for event in predicted.events if event.what == "partition table")
    assert table.sha256 in [event.digests[Algorithm.SHA256] for event in parse_log(seen.log).events]
