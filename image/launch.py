"""The exact commands that launch an image: on a host of one's own with QEMU, or in a cloud.

Printed, and never run by this program. What goes into them was measured or is held against what was: the command line, and the
configuration's digest as HOST_DATA (SEV-SNP) or MRCONFIGID (TDX). Clouds take neither: there the command line in the image carries it.
"""

from __future__ import annotations

import json
import shlex
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer

from enclave_server.config_identity import mr_config_id
from image.errors import ImageError
from image.measure.shapes import Shape, shape_named
from image.measure.snp import CPU_TYPES

_PORT = 8443
_QGS = {"type": "vsock", "cid": "2", "port": "4050"}  # the host's quoting service
_POLICY = "0x30000"  # SMT allowed, and no debugging
_ON_ONE_LINE = 4  # options, and what comes before them
_WINDOW = 262144  # MiB of address space for a GPU's memory (OVMF, X-PciMmio64Mb)


class LaunchTarget(StrEnum):
    """Where an image is launched."""

    QEMU_SNP = "qemu-snp"
    QEMU_TDX = "qemu-tdx"
    AZURE = "azure"
    GCP = "gcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One machine."""

    out: Path
    shape: Shape
    cpu_type: str = CPU_TYPES[0]  # SEV-SNP: the launch digest covers it
    firmware: Path | None = None
    model: Path | None = None
    gpus: tuple[str, ...] = ()  # PCI addresses on the host

    @property
    def memory(self) -> int:
        """In MiB."""
        return self.shape.memory >> 20


def launch_commands(launch: Launch, target: LaunchTarget) -> str:
    """A shell script."""
    match target:
        case LaunchTarget.QEMU_SNP | LaunchTarget.QEMU_TDX:
            return _shell(qemu_line(launch, target))
        case LaunchTarget.AZURE:
            return _azure(launch)
        case LaunchTarget.GCP:
            return _gcp(launch)


def qemu_line(launch: Launch, target: LaunchTarget) -> list[str]:
    """QEMU's own arguments. SEV-SNP takes QEMU 9.1 or later, TDX 10.1."""
    out = launch.out
    digest = sha256(_read(out / "enclave.toml")).digest()
    line = ["qemu-system-x86_64", "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]
    line += _snp(launch, digest) if target is LaunchTarget.QEMU_SNP else _tdx(launch, digest)
    line += ["-smp", str(launch.shape.cpus), "-m", f"{launch.memory}M"]
    disks = {"enclave-root": out / "root.img", "enclave-config": out / "config.img"}
    if launch.model is not None:
        disks["enclave-model"] = launch.model
    for number, (serial, disk) in enumerate(disks.items()):
        line += ["-drive", f"file={_value(disk)},format=raw,if=none,id=disk{number},readonly=on"]
        line += ["-device", f"virtio-blk-pci,drive=disk{number},serial={serial}"]
    line += ["-netdev", f"user,id=net0,hostfwd=tcp::{_PORT}-:{_PORT}"]
    line += ["-device", "virtio-net-pci,netdev=net0,romfile="]
    line += _gpus(launch)
    line += ["-kernel", str(out / "vmlinuz"), "-initrd", str(out / "initrd")]
    return [*line, "-append", _read(out / "cmdline").decode()]


def _snp(launch: Launch, digest: bytes) -> list[str]:
    firmware = launch.firmware or Path("/usr/share/ovmf/OVMF.amdsev.fd")
    guest = f"sev-snp-guest,id=snp,cbitpos=51,reduced-phys-bits=1,policy={_POLICY},kernel-hashes=on"
    return [
        *("-machine", "q35,accel=kvm,confidential-guest-support=snp,memory-backend=ram"),
        *("-object", f"memory-backend-memfd,id=ram,size={launch.memory}M,share=true,prealloc=false"),
        *("-object", f"{guest},host-data={b64encode(digest).decode()}"),
        *("-cpu", launch.cpu_type, "-bios", str(firmware)),
    ]


def _tdx(launch: Launch, digest: bytes) -> list[str]:
    if launch.firmware is None:  # no package has one that starts this image
        raise ImageError(
            "a TD needs the firmware that its reference values were measured with",
            "Give it with --firmware: the file that `image measure --tdx-firmware` was given (docs/rebuild.md, Firmware)",
        )
    config = b64encode(mr_config_id(digest)).decode()
    guest = {"qom-type": "tdx-guest", "id": "tdx", "mrconfigid": config, "quote-generation-socket": _QGS}
    return [
        *("-machine", "q35,accel=kvm,kernel-irqchip=split,confidential-guest-support=tdx"),
        *("-object", json.dumps(guest, separators=(",", ":"))),
        *("-cpu", "host", "-bios", str(launch.firmware)),
    ]


def _gpus(launch: Launch) -> list[str]:
    if len(launch.gpus) != launch.shape.gpus:
        raise ImageError(
            f"GPUs: shape {launch.shape.name} has {launch.shape.gpus}, addresses are given of {len(launch.gpus)}",
            "Give --gpu with the PCI address of each",
        )
    if not launch.gpus:
        return []
    line = ["-object", "iommufd,id=iommufd0", "-fw_cfg", f"name=opt/ovmf/X-PciMmio64Mb,string={_WINDOW}"]
    for number, address in enumerate(launch.gpus):
        line += ["-device", f"pcie-root-port,id=gpu{number},chassis={number + 1}"]
        line += ["-device", f"vfio-pci,host={_value(address)},bus=gpu{number},iommufd=iommufd0"]
    return line


def _azure(launch: Launch) -> str:
    """A gallery image of the kind that confidential VMs can start, as a specialised one: nothing in it provisions itself."""
    disk, vhd = launch.out / "disk.raw", launch.out / "disk.vhd"
    _read(disk, size=1)
    definition = ("--gallery-name", "enclave", "--gallery-image-definition", "enclave")
    group = ("--resource-group", "$GROUP")
    commands = [
        ("truncate", "--size=%1M", str(disk)),
        ("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size", str(disk), str(vhd)),
        ("az", "storage", "blob", "upload", "--account-name", "$ACCOUNT", "--container-name", "vhds",
         "--name", "enclave.vhd", "--type", "page", "--file", str(vhd)),
        ("az", "sig", "create", *group, "--gallery-name", "enclave"),
        ("az", "sig", "image-definition", "create", *group, *definition, "--publisher", "enclave", "--offer", "enclave",
         "--sku", "enclave", "--os-type", "Linux", "--os-state", "Specialized", "--hyper-v-generation", "V2",
         "--features", "SecurityType=ConfidentialVmSupported"),
        ("az", "sig", "image-version", "create", *group, *definition, "--gallery-image-version", "1.0.0",
         "--os-vhd-storage-account", "$ACCOUNT", "--os-vhd-uri", "https://$ACCOUNT.blob.core.windows.net/vhds/enclave.vhd"),
        ("az", "vm", "create", *group, "--name", "enclave", "--specialized", "--image", "$IMAGE", "--size", "$SIZE",
         "--security-type", "ConfidentialVM", "--os-disk-security-encryption-type", "VMGuestStateOnly",
         "--enable-vtpm", "true", "--enable-secure-boot", "false"),
    ]  # fmt: skip
    return (
        "# GROUP, ACCOUNT: yours. SIZE: such as Standard_DC8as_v5 (SEV-SNP) or Standard_DC8es_v5 (TDX).\n"
        "# IMAGE: the id that `az sig image-version create` prints.\n" + "".join(map(_shell, commands))
    )


def _gcp(launch: Launch) -> str:
    disk, archive = launch.out / "disk.raw", launch.out / "disk.tar.gz"
    _read(disk, size=1)
    features = "UEFI_COMPATIBLE,GVNIC,SEV_SNP_CAPABLE,TDX_CAPABLE"
    commands = [
        ("truncate", "--size=%1G", str(disk)),
        ("tar", "--format=oldgnu", "-Sczf", str(archive), "-C", str(launch.out), "disk.raw"),
        ("gcloud", "storage", "cp", str(archive), "gs://$BUCKET/enclave.tar.gz"),
        ("gcloud", "compute", "images", "create", "enclave", "--source-uri=gs://$BUCKET/enclave.tar.gz",
         f"--guest-os-features={features}"),
        ("gcloud", "compute", "instances", "create", "enclave", "--zone=$ZONE", "--machine-type=$TYPE", "--image=enclave",
         "--confidential-compute-type=$TEE", "--maintenance-policy=TERMINATE", "--shielded-vtpm",
         "--no-shielded-secure-boot"),
    ]  # fmt: skip
    return (
        "# BUCKET, ZONE: yours. TYPE and TEE: such as c3-standard-8 and TDX, or n2d-standard-8 and SEV_SNP.\n"
        + "".join(map(_shell, commands))
    )


def _shell(words: Sequence[str]) -> str:
    """One command, with an option on each line when it is long. Words with a variable in them stay open to it."""
    lines: list[str] = []
    for word in words:
        quoted = f'"{word}"' if "$" in word else shlex.quote(word)
        if not lines or word.startswith("-"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return (" " if len(lines) <= _ON_ONE_LINE else " \\\n  ").join(lines) + "\n"


def _value(text: Path | str) -> str:
    """As it stands inside of an option's list: QEMU doubles commas."""
    return str(text).replace(",", ",,")


def _read(file: Path, *, size: int = -1) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as exc:
        advice = (
            "Build the image with --disk"
            if file.name == "disk.raw"
            else "Name a folder that `image build` made"
        )
        raise ImageError(f"cannot read {file}: {exc.strerror}", advice) from exc


def launch(
    out: Annotated[Path, typer.Argument(help="A folder made by `enclave-server image build`.")],
    target: Annotated[LaunchTarget, typer.Option(help="Where it is launched.")],
    print_: Annotated[
        bool, typer.Option("--print", help="Print the commands. Nothing else is done.")
    ] = False,
    shape: Annotated[
        str, typer.Option(help="QEMU: CPUs, memory and GPUs, as for `image measure`.")
    ] = "small",
    cpu_type: Annotated[str, typer.Option(help="SEV-SNP: the CPU's model, as measured.")] = CPU_TYPES[0],
    firmware: Annotated[
        Path | None,
        typer.Option(
            help="QEMU: OVMF's AmdSev build, unless given Debian's; for TDX the one that was measured."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="QEMU: a disk made by `model pack`.")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="QEMU: a GPU's PCI address; once for each.")] = None,
) -> None:
    """Print the exact commands that launch the image."""
    if not print_:
        raise ImageError("nothing is launched from here", "Say --print, and run what it prints on the host")
    what = Launch(
        out=out,
        shape=shape_named(shape),
        cpu_type=cpu_type,
        firmware=firmware,
        model=model,
        gpus=tuple(gpu or ()),
    )
    typer.echo(launch_commands(what, target), nl=False)
