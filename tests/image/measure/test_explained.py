"""What `image measure` predicts is what `explain` reads: an honest boot of each cell fits, and a changed file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from attestation.measure import MeasuredEvent, Role
from attestation.measure.explain import Boot, Change, State, explain
from attestation.references import References, dump_references, parse_references
from attestation.release import Expected, Release
from image.measure.plan import measure, read_image
from image.measure.profiles import PROFILES
from image.measure.registers import replay
from tests.image.measure.files import kernel, unified
from tests.image.measure.test_plan import CONFIG, LINE, machine, out, write

__all__ = ["out"]
FILES = {"vmlinuz": kernel(), "initrd": b"initrd", "cmdline": LINE, "enclave.toml": CONFIG}


def predicted(out: Path, folder: Path, **changed: bytes) -> Release:
    """The release of an image with these files, read back from its file as a client has it."""
    files = {**FILES, **changed}
    uki = unified(files["vmlinuz"], files["initrd"], files["cmdline"])
    write(out, {**files, "enclave.efi": uki})
    found = measure(read_image(out), machine(folder), release="/".join(changed) or "1.4.0")
    references = References(name="acme", epoch=1, issued=0, expires=1, releases=(found,))
    return parse_references(dump_references(references)).releases[0]


def booted(cell: Expected, *, log: bool = True) -> Boot:
    """A machine that boots as this cell says; what the host adds is some digest."""
    algorithm = "sha256" if cell.platform == "vtpm" else "sha384"
    events: dict[str, list[MeasuredEvent]] = {}
    for event in cell.events:
        digest = getattr(event, algorithm) or b"\xee" * 48
        role = Role.OTHER
        events.setdefault(event.register, []).append(
            MeasuredEvent(register=event.register, role=role, digest=digest, data=None)
        )
    values = {r: v if v is not None else b"\xff" * 48 for r, v in replay(cell.events, algorithm).items()}
    values |= {r: e[-1].digest for r, e in events.items() if r in ("MRTD", "MEASUREMENT")}
    values |= {"vtpm": {"PCR12": bytes(32)}, "tdx": {"RTMR3": bytes(48)}}.get(cell.platform, {})
    return Boot(platform=cell.platform, registers=values, events=events if log else {})


@pytest.mark.parametrize("log", [True, False])
def test_an_honest_boot_of_each_cell(out: Path, tmp_path: Path, log: bool) -> None:
    """With a log and without one; SEV-SNP by which of its digests it is."""
    release = predicted(out, tmp_path)
    assert len(release.expected) == 7
    for cell in release.expected:
        found = explain(booted(cell, log=log), (release,))[0]
        assert found.same, found
        assert (found.cell.platform, found.cell.boot) == (cell.platform, cell.boot)
        if cell.platform == "snp":
            assert found.cell.shape == cell.shape
            assert "EPYC-Turin" in found.registers[0].what


@pytest.mark.parametrize("name", ["vmlinuz", "initrd", "cmdline"])
def test_a_changed_file_is_named(out: Path, tmp_path: Path, name: str) -> None:
    """Each file of the image, on each platform that has a log: the first event that differs is of that file."""
    release = predicted(out, tmp_path)
    other = predicted(out, tmp_path, **{name: FILES[name] + b" x"})
    for cell in other.expected:
        if cell.platform == "snp":
            continue
        found = explain(booted(cell), (release,))[0]
        (first, *_) = (
            r for r in found.registers if r.difference is not None and r.difference.expected is not None
        )
        assert first.difference is not None
        assert first.difference.expected is not None
        assert first.difference.change is Change.CHANGED
        assert found.cell.boot == cell.boot
        assert first.difference.expected.source.startswith(("enclave.efi", name))
        known = explain(booted(cell), (release, other))
        assert known[0].same
        assert name in known[0].release


def test_a_command_line_from_outside(out: Path, tmp_path: Path) -> None:
    """PCR 12 has to stay empty, although no event says so."""
    release = predicted(out, tmp_path)
    cell = next(c for c in release.expected if c.boot == "uki")
    boot = booted(cell)
    found = explain(
        Boot(platform="vtpm", registers={**boot.registers, "PCR12": b"\x01" * 32}, events=boot.events),
        (release,),
    )
    (bad,) = (r.name for r in found[0].registers if r.state is State.DIFFERS)
    assert bad == "PCR12"


def test_another_firmware_profile(out: Path, tmp_path: Path) -> None:
    """What one profile's machine shows is found among the others, by name."""
    write(out, FILES)
    both = tuple(PROFILES[name] for name in ("qemu10-edk2-2025.02", "qemu10-edk2-2026.08"))
    release = measure(read_image(out), machine(tmp_path, profiles=both, tdx_firmware=None, snp_firmware=None))
    for cell in release.expected:
        assert explain(booted(cell), (release,))[0].cell.profile == cell.profile
