"""From the files of an image, the shapes and the profiles to one release: what it measures, and every event of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attestation.measure import EventLog
from attestation.release import Artifact, Build, Expected, ExpectedEvent, LeftOut, Release
from attestation.tdx.policy import TdxMeasurement
from enclave_server.settings import Settings
from image.errors import ImageError
from image.measure import pcr, rtmr
from image.measure.profiles import RETRIES, Profile
from image.measure.registers import replay
from image.measure.shapes import Shape
from image.measure.snp import CPU_TYPES, GUEST_FEATURES, Direct, Launched, launch_digests
from image.measure.tdvf import Tdvf, parse_tdvf

_PASSES = (1, 2)  # how VMMs measure a TD's first pages: each as it is added, or all after they were added
_NEEDED = ("vmlinuz", "initrd", "cmdline", "enclave.toml")
_ON_A_DISK = ("enclave.efi",)
_DISK, _DISK_HEAD = "disk.raw", 34 * 512  # the partition table is at its beginning
_SEAL = LeftOut(
    register="RTMR3", reason="the gateway's seal, which is another in each boot: require_serving_seal"
)
UEFI, ANY_SHAPE = (
    "uefi",
    "any",
)  # a unified kernel image measures the same under each firmware that follows the TCG's profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A folder that `image build` made, each file held against `image.json`."""

    folder: Path
    files: Mapping[str, bytes]  # those that are measured; of the disk its beginning
    description: Mapping[str, Any]

    @property
    def line(self) -> str:
        return self.files["cmdline"].decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the image is to run on, as far as measurements depend on it."""

    shapes: tuple[Shape, ...]
    profiles: tuple[Profile, ...]
    tdx_firmware: Path | None = None
    snp_firmware: Path | None = None
    cpu_types: tuple[str, ...] = CPU_TYPES
    guest_features: tuple[int, ...] = (GUEST_FEATURES,)
    logs: Mapping[str, EventLog] = field(default_factory=lambda: MappingProxyType({}))  # by shape


def read_image(folder: Path) -> Image:
    """The files, or ImageError naming the first that is missing or other than was built."""
    try:
        description = json.loads((folder / "image.json").read_bytes())
        known = {name: bytes.fromhex(entry["sha256"]) for name, entry in description["files"].items()}
        names = [*_NEEDED, *(name for name in _ON_A_DISK if name in known)]
        files = {name: (folder / name).read_bytes() for name in names}
        digests = {name: sha256(content).digest() for name, content in files.items()}
        if _DISK in known:
            with (folder / _DISK).open("rb") as disk:
                digests[_DISK] = file_digest(disk, "sha256").digest()
                disk.seek(0)
                files[_DISK] = disk.read(_DISK_HEAD)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ImageError(f"{folder} is no image: {exc}", "Make one with `image build`") from exc
    for name, digest in digests.items():
        if digest != known.get(name):
            raise ImageError(f"{folder / name} is not the file that was built", "Build the image again")
    return Image(folder=folder, files=files, description=description)


def measure(image: Image, machine: Machine, *, release: str = "") -> Release:
    """Everything that can be computed, for every shape under every profile."""
    firmware = _tdx_firmware(machine)
    snp = tuple(_snp(image, machine))
    boots = {
        (profile.name, shape.name): _direct(image, profile, shape)
        for profile in machine.profiles
        for shape in machine.shapes
    }
    head = image.files.get(_DISK, b"")
    disk = [pcr.unified(image.files[name], head) for name in _ON_A_DISK if name in image.files]
    settings = _settings(image)
    sealed = settings.serving_seal
    tds = (
        [_td(image, machine, firmware, shape, sealed=sealed) for shape in machine.shapes] if firmware else []
    )
    return Release(
        id=release or str(image.description.get("id", ""))[:16],
        tdx=tuple(dict.fromkeys(measurement for _, measurements in tds for measurement in measurements)),
        snp=frozenset(launched.digest for _, found in snp for launched in found),
        vtpm=pcr.forms([*boots.values(), *disk]),
        models=frozenset({bytes.fromhex(settings.model_digest)}),
        configs=frozenset({settings.digest()}),
        config_files=frozenset({sha256(image.files["enclave.toml"]).digest()}),
        build=_build(image, machine),
        expected=(
            *(expected for expected, _ in tds),
            *(_launches(shape, found) for shape, found in snp),
            *(_vtpm(found, name, shape, "direct") for (name, shape), found in boots.items()),
            *(_vtpm(found, UEFI, ANY_SHAPE, "uki") for found in disk),
        ),
    )


def _tdx_firmware(machine: Machine) -> Tdvf | None:
    if machine.tdx_firmware is None:
        return None
    if len(machine.profiles) != 1:
        raise ImageError(
            "a firmware for TDX belongs to one profile", "Say which VMM it runs under, with one --profile"
        )
    firmware = parse_tdvf(_read(machine.tdx_firmware))
    if firmware.secure_boot:
        raise ImageError(
            f"{machine.tdx_firmware} holds Secure Boot keys, which have not signed this image's kernel: it would not start it",
            "Take them out, and launch what you measure: virt-fw-vars -i IN -o OUT -d PK -d KEK -d db -d dbx",
        )
    return firmware


def _td(
    image: Image, machine: Machine, firmware: Tdvf, shape: Shape, *, sealed: bool
) -> tuple[Expected, tuple[TdxMeasurement, ...]]:
    (profile,) = machine.profiles
    kernel, initrd = image.files["vmlinuz"], image.files["initrd"]
    first, missing = rtmr.rtmr0(firmware, profile, None, memory=shape.memory)
    if shape.name in machine.logs:
        host = rtmr.host_events(machine.logs[shape.name], first)
        first, missing = rtmr.rtmr0(firmware, profile, host, memory=shape.memory)
    started = [
        rtmr.rtmr1(kernel, initrd, profile, memory=shape.memory, retries=retries)
        for retries in range(RETRIES)
    ]
    read = [event.into("RTMR2") for event in rtmr.rtmr2(initrd, image.line, profile)]
    values = replay([*first, *read], "sha384")
    mrtds = [firmware.mrtd(passes) for passes in _PASSES]
    events = (
        *(_mrtd(passes, value) for passes, value in zip(_PASSES, mrtds, strict=True)),
        *first,
        *(event.into("RTMR1") for event in started[0]),
        *read,
    )
    expected = Expected(
        platform="tdx",
        profile=profile.name,
        shape=shape.name,
        boot="direct",
        events=events,
        left_out=(*((missing,) if missing else ()), *((_SEAL,) if sealed else ())),
    )
    measurements = tuple(
        TdxMeasurement(
            mrtd=mrtd,
            rtmr0=None if missing else values["RTMR0"],
            rtmr1=replay([event.into("RTMR1") for event in form], "sha384")["RTMR1"],
            rtmr2=values["RTMR2"],
            rtmr3=None if sealed else bytes(48),  # nothing in this image extends it
        )
        for mrtd in mrtds
        for form in started
    )
    return expected, measurements


def _mrtd(passes: int, value: bytes) -> ExpectedEvent:
    how = "each page measured as it is added" if passes == 1 else "pages measured after all were added"
    return ExpectedEvent(
        register="MRTD", what=f"the TD's first pages, {how}", source="firmware", sha384=value
    )


def _snp(image: Image, machine: Machine) -> Iterator[tuple[Shape, tuple[Launched, ...]]]:
    if machine.snp_firmware is None:
        return
    files = Direct(kernel=image.folder / "vmlinuz", initrd=image.folder / "initrd", command_line=image.line)
    for shape in machine.shapes:
        found = launch_digests(
            machine.snp_firmware,
            files,
            cpus=[shape.cpus],
            cpu_types=machine.cpu_types,
            guest_features=machine.guest_features,
        )
        yield shape, found


def _launches(shape: Shape, found: Sequence[Launched]) -> Expected:
    events = tuple(
        ExpectedEvent(
            register="MEASUREMENT",
            what=f"launch digest: {launched}",
            source="firmware, vmlinuz, initrd, cmdline, shape",
            sha384=launched.digest,
        )
        for launched in found
    )
    return Expected(platform="snp", profile="QEMU", shape=shape.name, boot="direct", events=events)


def _direct(image: Image, profile: Profile, shape: Shape) -> pcr.Pcrs:
    kernel, initrd = image.files["vmlinuz"], image.files["initrd"]
    return pcr.direct(kernel, initrd, image.line, profile, memory=shape.memory)


def _vtpm(found: pcr.Pcrs, profile: str, shape: str, boot: str) -> Expected:
    return Expected(
        platform="vtpm",
        profile=profile,
        shape=shape,
        boot=boot,
        events=found.events,
        left_out=found.left_out,
    )


def _settings(image: Image) -> Settings:
    content = image.files["enclave.toml"]
    try:
        elsewhere = [name for name, origin in Settings.origins(content).items() if origin == "environment"]
        if elsewhere:
            raise ImageError(
                f"{', '.join(elsewhere)} come from ENCLAVE_* variables", "Unset them: the image has none"
            )
        return Settings.load(content)
    except ValueError as exc:
        raise ImageError(f"enclave.toml is no configuration of the gateway: {exc}") from exc


def _build(image: Image, machine: Machine) -> Build:
    described = image.description
    versions = described.get("versions", {})
    firmwares = [
        (path, "" if path == machine.snp_firmware else machine.profiles[0].firmware)
        for path in (machine.tdx_firmware, machine.snp_firmware)
        if path is not None
    ]
    try:
        return Build(
            id=bytes.fromhex(described["id"]),
            source=str(described.get("source", "")),
            source_date_epoch=int(described.get("source_date_epoch", 0)),
            target=str(described.get("target", "")),
            versions=tuple(f"{name} {version}" for name, version in sorted(versions.items())),
            files=tuple(
                Artifact(name=name, sha256=bytes.fromhex(entry["sha256"]))
                for name, entry in sorted(described["files"].items())
            ),
            firmware=tuple(
                Artifact(name=path.name, sha256=sha256(_read(path)).digest(), version=version)
                for path, version in firmwares
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ImageError(f"image.json is not what `image build` writes: {exc}") from exc


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ImageError(f"cannot read {path}: {exc.strerror}") from exc


def left_out(release: Release) -> tuple[LeftOut, ...]:
    """What nothing is predicted for, each once."""
    return tuple(dict.fromkeys(item for expected in release.expected for item in expected.left_out))
