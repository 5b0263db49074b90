"""Starting and ending a machine, with programs that stand in for QEMU and swtpm. The self-test boots real ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image.errors import MISSING, ImageError
from image.machine import Boot, Firmware, qemu_command, running
from tests.processes import running_with

SWTPM = """#!/bin/sh
for argument; do case "$argument" in *path=*) : > "${argument#*path=}";; esac; done
exec sleep 60
"""
QEMU = """#!/bin/sh
for argument; do case "$argument" in file:*) log="${argument#file:}";; esac; done
"""


@pytest.fixture
def boot(tmp_path: Path) -> Boot:
    for name in ("kernel", "initrd", "code", "variables", "root"):
        (tmp_path / name).write_bytes(name.encode())
    return Boot(
        kernel=tmp_path / "kernel",
        initrd=tmp_path / "initrd",
        command_line="ro quiet",
        disks={"enclave-root": tmp_path / "root"},
        firmware=Firmware(code=tmp_path / "code", variables=tmp_path / "variables"),
    )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that goes before all others, with a TPM that works and a setup that does nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    program(folder, "swtpm_setup", "#!/bin/sh\n")
    program(folder, "swtpm", SWTPM)
    return folder


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_the_console_is_waited_for(programs: Path, boot: Boot, tmp_path: Path) -> None:
    """The first text that comes is told; afterwards nothing that was started is left."""
    program(programs, "qemu-system-x86_64", QEMU + 'echo "init: ready" > "$log"; exec sleep 60\n')
    with running(boot, tmp_path / "m") as machine:
        assert machine.wait_for("REFUSED", "ready", seconds=60) == "ready"
        assert machine.origin == f"https://127.0.0.1:{machine.port}"
        with pytest.raises(ImageError, match=r"did not say more in 0 s: init: ready"):
            machine.wait_for("more", seconds=0.2)
        with pytest.raises(ImageError, match="was not off"):
            machine.wait_for_end(seconds=0.2)
        assert running_with(str(programs))
    assert not running_with(str(programs))


def test_a_machine_that_ends(programs: Path, boot: Boot, tmp_path: Path) -> None:
    """Its last words are told, QEMU's own where the console has none."""
    program(programs, "qemu-system-x86_64", QEMU + 'echo "REFUSED root" > "$log"\n')
    with running(boot, tmp_path / "1") as machine:
        assert "REFUSED root" in machine.wait_for_end(seconds=60)
        assert machine.wait_for("REFUSED", seconds=1) == "REFUSED"
        with pytest.raises(ImageError, match=r"ended before it said ready: REFUSED root"):
            machine.wait_for("ready", seconds=60)
    program(programs, "qemu-system-x86_64", "#!/bin/sh\necho no such option >&2; exit 1\n")
    with running(boot, tmp_path / "2") as machine, pytest.raises(ImageError, match="no such option"):
        machine.wait_for("ready", seconds=60)


def test_what_does_not_start(programs: Path, boot: Boot, tmp_path: Path) -> None:
    """A TPM that cannot be made, a path that no socket can have, and programs that are not here."""
    program(programs, "qemu-system-x86_64", QEMU)
    with pytest.raises(ImageError, match="too long"), running(boot, tmp_path / ("x" * 100)):
        pass
    program(programs, "swtpm", "#!/bin/sh\necho broken >&2; exit 1\n")
    with pytest.raises(ImageError, match="swtpm did not start: broken"), running(boot, tmp_path / "1"):
        pass
    program(programs, "swtpm_setup", "#!/bin/sh\necho no space >&2; exit 1\n")
    with pytest.raises(ImageError, match="swtpm_setup failed: no space"), running(boot, tmp_path / "2"):
        pass
    boot.firmware.code.unlink()
    with (
        pytest.raises(ImageError, match=r"no machine was booted: ovmf") as caught,
        running(boot, tmp_path / "3"),
    ):
        pass
    assert caught.value.status == MISSING


def test_disks_are_read_only_and_named(boot: Boot, tmp_path: Path) -> None:
    """The guest finds a disk by its serial number, and QEMU opens none for writing but the variables."""
    line = qemu_command(boot, tmp_path, port=1)
    drives = [line[at + 1] for at, word in enumerate(line) if word == "-drive"]
    assert [drive for drive in drives if "readonly=on" not in drive] == [
        f"if=pflash,format=raw,file={tmp_path}/variables.fd"
    ]
    assert "virtio-blk-pci,drive=disk0,serial=enclave-root" in line
