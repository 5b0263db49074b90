"""What `image launch --print` prints, as files in `launch/`; and QEMU's own opinion of the lines that are for QEMU."""

from __future__ import annotations

import base64
import shlex
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from image.cli import cli
from image.errors import ImageError
from image.launch import Launch, LaunchTarget, launch_commands, qemu_line
from image.measure.shapes import Shape, shape_named

GOLDEN = Path(__file__).parent / "launch"
CONFIG = b'tee = "snp"\n'
SMALL = shape_named("small")
QEMU_TARGETS = [LaunchTarget.QEMU_SNP, LaunchTarget.QEMU_TDX]
FIRMWARE = Path("/usr/share/ovmf/OVMF.fd")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder as the build leaves it, as far as a launch looks at it."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "enclave.toml").write_bytes(CONFIG)
    digest = sha256(CONFIG).hexdigest()
    (folder / "cmdline").write_text(f"console=ttyS0 ro enclave.root={'ab' * 32}:7:00 enclave.config={digest}")
    for name in ("vmlinuz", "initrd", "root.img", "config.img", "disk.raw"):
        (folder / name).write_bytes(bytes(4096))
    (folder / "vmlinuz").write_bytes(
        bytes(0x202) + b"HdrS\x0c\x02" + bytes(9) + b"\x01" + bytes(26) + b"\xff\xff\xff\x7f" + bytes(8192)
    )
    return folder


def small(out: Path, target: LaunchTarget) -> Launch:
    """What is launched there. For a TD the operator says which firmware was measured."""
    firmware = Path("/srv/OVMF.inteltdx.fd") if target is LaunchTarget.QEMU_TDX else None
    return Launch(out=out, shape=SMALL, firmware=firmware)


@pytest.mark.parametrize("target", list(LaunchTarget))
def test_the_printed_commands(out: Path, target: LaunchTarget) -> None:
    """Each is exactly the file beside this one."""
    printed = launch_commands(small(out, target), target).replace(str(out), "OUT")
    assert printed == (GOLDEN / f"{target}.sh").read_text()


@pytest.mark.parametrize("target", list(LaunchTarget))
def test_a_shell_reads_them(out: Path, target: LaunchTarget) -> None:
    """They are commands, and the kernel's command line is one word of them."""
    script = launch_commands(small(out, target), target)
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    if target in QEMU_TARGETS:
        assert shlex.split(script.replace("\\\n", "")) == qemu_line(small(out, target), target)


def test_the_configuration_that_is_launched(out: Path) -> None:
    """HOST_DATA is its SHA-256; MRCONFIGID is that and 16 zero bytes; both as the configuration is, not as image.json says."""
    digest = sha256(CONFIG).digest()
    snp, tdx = (" ".join(qemu_line(small(out, target), target)) for target in QEMU_TARGETS)
    assert f"host-data={base64.b64encode(digest).decode()}" in snp
    assert f'"mrconfigid":"{base64.b64encode(digest + bytes(16)).decode()}"' in tdx


@pytest.mark.skipif(
    not shutil.which("qemu-system-x86_64") or not FIRMWARE.exists(), reason="needs qemu-system-x86 and ovmf"
)
@pytest.mark.parametrize("target", QEMU_TARGETS)
def test_qemu_takes_its_line(out: Path, target: LaunchTarget) -> None:
    """A real QEMU builds the machine, but for what takes the hardware: KVM, the guest of a TEE as the machine's, and its GPUs."""
    line = qemu_line(
        Launch(
            out=out,
            shape=Shape(name="x", cpus=1, memory=256 << 20),
            firmware=FIRMWARE,
            model=out / "root.img",
        ),
        target,
    )
    line = [part_without_hardware(word) for word in line]
    if target is LaunchTarget.QEMU_TDX:  # known from QEMU 10.1 on
        at = next(number for number, word in enumerate(line) if "tdx-guest" in word)
        del line[at - 1 : at + 1]
    line[line.index("-serial") + 1] = "null"
    line = [word if not word.startswith("user,") else "user,id=net0" for word in line]
    line += ["-S", "-qmp", "stdio"]
    script = '{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}\n'
    done = subprocess.run(line, input=script, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert '"inserted"' in done.stdout
    assert done.stdout.count('"ro": true') == 3


def part_without_hardware(word: str) -> str:
    for gone in (",confidential-guest-support=snp", ",confidential-guest-support=tdx"):
        word = word.replace(gone, "")
    return {"host": "max"}.get(word, word.replace("accel=kvm", "accel=tcg"))


def test_gpus_models_and_odd_names(out: Path) -> None:
    """Each has its place; a comma in a file's name is doubled, as QEMU wants it."""
    odd = out / "a,b.img"
    line = qemu_line(
        Launch(
            out=out,
            shape=shape_named("8cpu-64gib-2gpu"),
            firmware=odd,
            model=odd,
            gpus=("0000:41:00.0", "0000:61:00.0"),
        ),
        LaunchTarget.QEMU_TDX,
    )
    assert f"file={out}/a,,b.img,format=raw,if=none,id=disk2,readonly=on" in line
    assert "virtio-blk-pci,drive=disk2,serial=enclave-model" in line
    assert "vfio-pci,host=0000:61:00.0,bus=gpu1,iommufd=iommufd0" in line


def test_the_command(out: Path) -> None:
    """It prints, and says so when it was expected to do more; what is missing is named."""
    run = CliRunner().invoke
    printed = run(
        cli,
        [
            "launch",
            str(out),
            "--print",
            "--target",
            "qemu-snp",
            "--shape",
            "4cpu-8gib",
            "--cpu-type",
            "EPYC-Milan",
        ],
    )
    assert printed.exit_code == 0
    assert "-smp 4 \\\n  -m 8192M" in printed.output
    assert "-cpu EPYC-Milan" in printed.output
    refused = run(cli, ["launch", str(out), "--target", "qemu-snp"])
    assert isinstance(refused.exception, ImageError)
    with pytest.raises(ImageError, match="has 1, addresses are given of 0"):
        launch_commands(Launch(out=out, shape=shape_named("h200x1")), LaunchTarget.QEMU_SNP)
    with pytest.raises(ImageError, match=r"the firmware that .* measured with. Give it with --firmware"):
        launch_commands(Launch(out=out, shape=SMALL), LaunchTarget.QEMU_TDX)
    (out / "disk.raw").unlink()
    with pytest.raises(ImageError, match="--disk"):
        launch_commands(Launch(out=out, shape=SMALL), LaunchTarget.GCP)
    with pytest.raises(ImageError, match=r"enclave\.toml"):
        launch_commands(Launch(out=out / "none", shape=SMALL), LaunchTarget.QEMU_SNP)
