"""`image measure`: from a folder to reference values that a client merges, and the same for whoever measures it."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attestation.policy import Policy
from attestation.references import merge, parse_references
from attestation.release import Release
from attestation.snp import SnpPolicy
from attestation.tdx import TdxPolicy, parse_quote
from attestation.vtpm import VtpmPolicy
from enclave_server.settings import Settings
from image.cli import cli
from image.errors import ImageError
from image.measure.plan import Machine, left_out, measure, read_image
from image.measure.profiles import PROFILES
from image.measure.shapes import shape_named
from tests.image.measure.files import VARIABLES, firmware, kernel, snp_firmware, unified
from tests.vectors import needs_vectors, read

CONFIG = (
    'model_dir = "/model"\nmodel_name = "m"\nmodel_digest = "' + "07" * 32 + '"\ntee = "simulated-tdx"\n'
    'engine_python = "/opt/engine/bin/python"\n'
).encode()
LINE = b"console=ttyS0 ro enclave.root=00:1:00 enclave.config=00"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder, {"vmlinuz": kernel(), "initrd": b"initrd", "cmdline": LINE, "enclave.toml": CONFIG})
    return folder


def write(folder: Path, files: dict[str, bytes], **description: Any) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    listed = {
        name: {"sha256": sha256(content).hexdigest(), "size": len(content)} for name, content in files.items()
    }
    document = {
        "id": "ab" * 32,
        "source": "1234",
        "source_date_epoch": 7,
        "target": "cpu",
        "versions": {"kernel": "6.12", "gateway": "0.1"},
        "files": listed,
        **description,
    }
    (folder / "image.json").write_text(json.dumps(document))


def machine(tmp_path: Path, **changes: Any) -> Machine:
    (tmp_path / "tdx.fd").write_bytes(firmware())
    (tmp_path / "snp.fd").write_bytes(snp_firmware())
    return replace(
        Machine(
            shapes=(shape_named("small"), shape_named("h200x1")),
            profiles=(PROFILES["qemu10-edk2-2025.02"],),
            tdx_firmware=tmp_path / "tdx.fd",
            snp_firmware=tmp_path / "snp.fd",
        ),
        **changes,
    )


def test_firmware_with_keys_is_refused(out: Path, tmp_path: Path) -> None:
    """It would not start this kernel, so no value of it is one that a boot can have: what to do is said instead."""
    key = (b"\xaa\x55\x3f\x00".ljust(60, b"\0") + "PK\0".encode("utf-16-le")).ljust(4096, b"\0")
    here = machine(tmp_path)
    (tmp_path / "tdx.fd").write_bytes(firmware(variables=key))
    with pytest.raises(ImageError, match=r"tdx\.fd holds Secure Boot keys.*virt-fw-vars"):
        measure(read_image(out), here)


def test_everything_is_computed(out: Path, tmp_path: Path) -> None:
    """Two ways to add pages by three forms of leaving the firmware; four CPU types for each shape; two ways to boot."""
    files = {name: (out / name).read_bytes() for name in ("vmlinuz", "initrd", "cmdline", "enclave.toml")}
    write(out, {**files, "enclave.efi": unified(kernel(), b"initrd", LINE)})
    found = measure(read_image(out), machine(tmp_path))
    assert len(found.tdx) == 6  # both shapes measure the same, but in RTMR0
    assert len({(m.mrtd, m.rtmr1) for m in found.tdx}) == 6
    assert {(m.rtmr0, m.rtmr3) for m in found.tdx} == {(None, bytes(48))}
    assert len(found.snp) == 8
    assert len(found.vtpm) == 2
    assert found.models == {b"\x07" * 32}
    assert found.configs == {Settings.load(CONFIG).digest()}
    assert found.config_files == {sha256(CONFIG).digest()}
    assert found.build is not None
    assert found.build.versions == ("gateway 0.1", "kernel 6.12")
    assert [artifact.name for artifact in found.build.firmware] == ["tdx.fd", "snp.fd"]
    assert [(e.platform, e.profile, e.shape, e.boot) for e in found.expected] == [
        ("tdx", "qemu10-edk2-2025.02", "small", "direct"),
        ("tdx", "qemu10-edk2-2025.02", "h200x1", "direct"),
        ("snp", "QEMU", "small", "direct"),
        ("snp", "QEMU", "h200x1", "direct"),
        ("vtpm", "qemu10-edk2-2025.02", "small", "direct"),
        ("vtpm", "qemu10-edk2-2025.02", "h200x1", "direct"),
        ("vtpm", "uefi", "any", "uki"),
    ]
    assert "RTMR0" in [item.register for item in left_out(found)]


def test_a_disk(out: Path, tmp_path: Path) -> None:
    """Its partition table is an event that people can compare, and no value: clouds rewrite it."""
    files = {name: (out / name).read_bytes() for name in ("vmlinuz", "initrd", "cmdline", "enclave.toml")}
    entry = b"\1" * 128
    head = (b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)).ljust(512, b"\0")
    disk = bytes(512) + head + entry.ljust(128 * 128, b"\0") + bytes(4096)
    uki = unified(kernel(), b"initrd", LINE)
    write(out, {**files, "enclave.efi": uki, "disk.raw": disk})
    found = measure(read_image(out), machine(tmp_path, tdx_firmware=None)).expected[-1]
    assert [event.what for event in found.events if event.register == "PCR5"] == [
        "separator",
        "partition table",
        "Exit Boot Services Invocation",
        "Exit Boot Services Returned with Success",
    ]
    (out / "disk.raw").write_bytes(disk + b"x")
    with pytest.raises(ImageError, match=r"disk\.raw is not the file"):
        read_image(out)


def test_a_sealed_gateway(out: Path, tmp_path: Path) -> None:
    """Its seal makes RTMR3 another in each boot, so no value is predicted; without a seal nothing may extend it."""
    files = {name: (out / name).read_bytes() for name in ("vmlinuz", "initrd", "cmdline")}
    sealed = CONFIG.replace(b'"simulated-tdx"', b'"tdx"') + b"serving_seal = true\n"
    write(out, {**files, "enclave.toml": sealed})
    found = measure(read_image(out), machine(tmp_path))
    assert {m.rtmr3 for m in found.tdx} == {None}
    assert "RTMR3" in [item.register for item in left_out(found)]


def test_nothing_is_guessed(out: Path, tmp_path: Path) -> None:
    """Without firmware there is nothing of TDX and SEV-SNP, and with it RTMR0 has no value but a reason."""
    bare = measure(read_image(out), machine(tmp_path, tdx_firmware=None, snp_firmware=None))
    assert (bare.tdx, bare.snp) == ((), frozenset())
    with pytest.raises(ImageError, match="one profile"):
        measure(read_image(out), machine(tmp_path, profiles=tuple(PROFILES.values())))
    (reason,) = {
        item.reason
        for item in left_out(measure(read_image(out), machine(tmp_path)))
        if item.register == "RTMR0"
    }
    assert "--ccel" in reason


def entry(text: str) -> str:
    return text.rsplit("entry ", 1)[1].strip()


def test_the_command(out: Path, tmp_path: Path) -> None:
    """What it writes is what a client merges; who measures the same folder gets the same entry."""
    machine(tmp_path)
    arguments = [
        "measure",
        str(out),
        "--shape",
        "small",
        "--name",
        "acme",
        "--profile",
        "qemu10-edk2-2025.02",
    ]
    arguments += ["--tdx-firmware", str(tmp_path / "tdx.fd"), "--snp-firmware", str(tmp_path / "snp.fd")]
    shown = [
        CliRunner().invoke(cli, [*arguments, "-o", str(tmp_path / name)], catch_exceptions=False)
        for name in ("a.json", "b.json")
    ]
    assert [result.exit_code for result in shown] == [0, 0]
    assert entry(shown[0].output) == entry(shown[1].output)
    assert "MEASUREMENT" in shown[0].output
    assert "not predicted, and in no value above:\n  RTMR0  ACPI tables" in shown[0].output
    references = parse_references((tmp_path / "a.json").read_bytes())
    assert references.name == "acme"
    policy = merge(Policy(tdx=TdxPolicy(), snp=SnpPolicy(), azure=VtpmPolicy()), references)
    policy = policy.taking(*policy.release.accepted)
    assert policy.tdx is not None
    assert policy.snp is not None
    assert policy.azure is not None
    assert len(policy.tdx.measurements) == 6
    assert len(policy.snp.measurements) == 4
    assert len(policy.azure.measurements) == 1


def test_guest_features(out: Path, tmp_path: Path) -> None:
    """A host whose KVM sets more of them launches another digest; what is no number is refused."""
    machine(tmp_path)
    arguments = ["measure", str(out), "--shape", "small", "--snp-firmware", str(tmp_path / "snp.fd")]
    arguments += ["--cpu-type", "EPYC-Genoa", "-o", str(tmp_path / "a.json"), "--guest-features"]
    result = CliRunner().invoke(cli, [*arguments, "0x1", "--guest-features", "0x21"], catch_exceptions=False)
    assert result.exit_code == 0
    (release,) = parse_references((tmp_path / "a.json").read_bytes()).releases
    assert len(release.snp) == 2
    refused = CliRunner().invoke(cli, [*arguments, "many"])
    assert isinstance(refused.exception, ImageError)


@needs_vectors
def test_with_the_log_of_a_real_td(out: Path, tmp_path: Path) -> None:
    """A log of a TD of this shape completes RTMR0: the value is the one in that TD's quote, and no other."""
    if not VARIABLES.is_file():
        pytest.skip(f"{VARIABLES} is not here: apt-get install ovmf")
    (tmp_path / "tdx.fd").write_bytes(firmware(variables=VARIABLES.read_bytes()))
    (tmp_path / "ccel").write_bytes(read("eventlog/ccel-cdai-live2.bin"))
    arguments = ["measure", str(out), "--shape", "1cpu-2gib", "--tdx-firmware", str(tmp_path / "tdx.fd")]
    arguments += ["--ccel", f"1cpu-2gib={tmp_path / 'ccel'}", "-o", str(tmp_path / "a.json")]
    result = CliRunner().invoke(cli, [*arguments, "--profile", "qemu10-edk2-2025.02"], catch_exceptions=False)
    assert result.exit_code == 0
    (release,) = parse_references((tmp_path / "a.json").read_bytes()).releases
    quoted = parse_quote(read("eventlog/ccel-cdai-live2.quote.bin")).td.rtmr0
    assert {measurement.rtmr0 for measurement in release.tdx} == {quoted}
    assert "RTMR0" not in [item.register for item in left_out(release)]
    assert "RTMR0" in result.output


@pytest.mark.parametrize("item", ["small", "small=", "other=ccel", "small=missing", "small=a.json"])
def test_no_log(out: Path, tmp_path: Path, item: str) -> None:
    """A log of no shape, of another one, one that is not there, and a file that is none."""
    (tmp_path / "a.json").write_text("{}")
    arguments = ["measure", str(out), "--shape", "small", "-o", str(tmp_path / "b.json"), "--ccel"]
    result = CliRunner().invoke(cli, [*arguments, item.replace("=a", f"={tmp_path}/a")])
    assert isinstance(result.exception, ImageError)
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("name", ["vmlinuz", "initrd", "cmdline", "enclave.toml"])
def test_a_file_that_was_not_built(out: Path, name: str) -> None:
    """Each file must be the one that image.json describes."""
    (out / name).write_bytes(b"another")
    with pytest.raises(ImageError, match=f"{name} is not the file"):
        read_image(out)


def test_no_image(tmp_path: Path, out: Path) -> None:
    """An empty folder, a broken description, one that lacks a file's digest, and one without its identity."""
    with pytest.raises(ImageError, match="is no image"):
        read_image(tmp_path)
    for text in ("", "[]", "{}", '{"files": {"vmlinuz": 1}}'):
        (out / "image.json").write_text(text)
        with pytest.raises(ImageError, match=r"no image|not the file"):
            read_image(out)


def test_a_configuration_that_the_gateway_refuses(out: Path, tmp_path: Path) -> None:
    """Then no statement could ever show its digest."""
    files = {name: (out / name).read_bytes() for name in ("vmlinuz", "initrd", "cmdline")}
    write(out, {**files, "enclave.toml": b"nonsense = 1\n"})
    with pytest.raises(ImageError, match="no configuration of the gateway"):
        measure(read_image(out), machine(tmp_path))


def test_nothing_of_this_machines_environment(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable here would be no setting there."""
    monkeypatch.setenv("ENCLAVE_MODEL_NAME", "other")
    with pytest.raises(ImageError, match="model_name"):
        measure(read_image(out), machine(tmp_path))


def test_a_release_has_its_builds_name(out: Path, tmp_path: Path) -> None:
    """Unless it is given another."""
    found: Release = measure(read_image(out), machine(tmp_path, tdx_firmware=None))
    assert found.id == "ab" * 8
    assert measure(read_image(out), machine(tmp_path, tdx_firmware=None), release="1.2").id == "1.2"
