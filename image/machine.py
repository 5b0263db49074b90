"""A virtual machine under emulation, with a TPM of its own: QEMU and swtpm, no special hardware and no KVM.

The TPM is real in all but its silicon: firmware and kernel measure into it as they would into a cloud's. Every wait is bounded, and
everything that was started is ended, whatever happens in between.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile, which
from types import MappingProxyType

from image.errors import MISSING, ImageError

TOOLS: Mapping[str, str] = MappingProxyType(
    {
        "qemu-system-x86_64": "qemu-system-x86",
        "swtpm": "swtpm",
        "swtpm_setup": "swtpm-tools",
    }
)
HOST = "10.0.2.2"  # the host, as QEMU's user network shows it to the guest; there its loopback answers
PORT = 8443  # the gateway's, in the guest
_SETUP_SECONDS, _END_SECONDS = 30.0, 10.0
_LONGEST_SOCKET = 100  # bytes: sun_path has 108


@dataclass(frozen=True, slots=True, kw_only=True)
class Firmware:
    """OVMF: what is executed, and the empty store of its variables."""

    code: Path
    variables: Path


OVMF = Firmware(
    code=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), variables=Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What is booted. Disks go by their serial number, read-only."""

    kernel: Path
    initrd: Path
    command_line: str
    disks: Mapping[str, Path] = field(default_factory=dict)
    memory: int = 2048  # MiB
    firmware: Firmware = OVMF


def qemu_command(boot: Boot, folder: Path, *, port: int) -> list[str]:
    """The machine's command line. `folder` has its variables, its TPM's socket and its console's log."""
    pflash = "if=pflash,format=raw"
    line = ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1"]
    line += ["-m", str(boot.memory), "-nodefaults", "-nographic", "-no-reboot"]
    line += ["-serial", f"file:{folder}/console.log"]
    line += ["-drive", f"{pflash},readonly=on,file={boot.firmware.code}"]
    line += ["-drive", f"{pflash},file={folder}/variables.fd"]
    line += ["-chardev", f"socket,id=tpm,path={folder}/tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
    line += ["-device", "tpm-crb,tpmdev=tpm0"]
    for number, (serial, disk) in enumerate(boot.disks.items()):
        line += ["-drive", f"file={disk},format=raw,if=none,id=disk{number},readonly=on"]
        line += ["-device", f"virtio-blk-pci,drive=disk{number},serial={serial}"]
    line += ["-netdev", f"user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:{PORT}"]
    line += ["-device", "virtio-net-pci,netdev=net0,romfile="]
    return [*line, "-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", boot.command_line]


class Machine:
    """A machine that runs."""

    def __init__(self, folder: Path, port: int, qemu: subprocess.Popen[bytes]) -> None:
        self._folder, self.port, self._qemu = folder, port, qemu

    @property
    def origin(self) -> str:
        """Where the gateway in it answers."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def console(self) -> str:
        """What its serial console has said so far."""
        try:
            return (self._folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def line_with(self, text: str) -> str:
        """The first line of the console that has this in it."""
        return next((line.strip() for line in self.console.splitlines() if text in line), "nothing")

    @property
    def running(self) -> bool:
        return self._qemu.poll() is None

    def wait_for(self, *texts: str, seconds: float) -> str:
        """The first of these texts on the console. Raises when it ends or the time does before any."""
        deadline = time.monotonic() + seconds
        while True:
            running = self.running  # before the console: what it said last counts
            said = self.console
            if found := next((text for text in texts if text in said), None):
                return found
            if not running:
                raise ImageError(f"the machine ended before it said {' or '.join(texts)}: {self._last(said)}")
            if time.monotonic() > deadline:
                raise ImageError(
                    f"the machine did not say {' or '.join(texts)} in {seconds:.0f} s: {self._last(said)}"
                )
            time.sleep(0.1)

    def wait_for_end(self, *, seconds: float) -> str:
        """What the console said until the machine was off."""
        try:
            self._qemu.wait(seconds)
        except subprocess.TimeoutExpired:
            said = self._last(self.console)
            raise ImageError(f"the machine was not off after {seconds:.0f} s: {said}") from None
        return self.console

    def _last(self, said: str) -> str:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        if not lines:
            lines = (self._folder / "qemu.log").read_text(errors="replace").splitlines() or ["nothing"]
        return " | ".join(lines[-3:])[-400:]


@contextmanager
def running(boot: Boot, folder: Path) -> Iterator[Machine]:
    """A machine that boots, with a new TPM. `folder` is new, and keeps its console's log."""
    check_machine(boot)
    folder = folder.resolve()
    if len(f"{folder}/tpm.sock") > _LONGEST_SOCKET:
        raise ImageError(f"{folder} is too long a path for a socket", "Set TMPDIR to a shorter one")
    folder.mkdir(parents=True)
    copyfile(boot.firmware.variables, folder / "variables.fd")
    port = _free_port()
    with _tpm(folder), _process(qemu_command(boot, folder, port=port), folder / "qemu.log") as qemu:
        yield Machine(folder, port, qemu)


def check_machine(boot: Boot) -> None:
    """The programs and the firmware are here."""
    missing = [package for name, package in TOOLS.items() if which(name) is None]
    if not (boot.firmware.code.exists() and boot.firmware.variables.exists()):
        missing.append("ovmf")
    if missing:
        raise ImageError(
            f"no machine was booted: {', '.join(missing)} is needed",
            f"Debian has it: apt-get install {' '.join(missing)}",
            status=MISSING,
        )


@contextmanager
def _tpm(folder: Path) -> Iterator[None]:
    """A TPM as it leaves the factory, at `tpm.sock`."""
    state = folder / "tpm"
    state.mkdir()
    banks = ("--pcr-banks", "sha1,sha256,sha384")
    setup = ["swtpm_setup", "--tpm2", "--tpmstate", str(state), *banks, "--overwrite"]
    try:
        done = subprocess.run(  # noqa: S603 - our own arguments
            setup, capture_output=True, timeout=_SETUP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"swtpm_setup did not end within {_SETUP_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise ImageError(f"swtpm_setup failed: {done.stderr.decode(errors='replace').strip()[-200:]}")
    control = folder / "tpm.sock"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
    with _process([*command, "--ctrl", f"type=unixio,path={control}"], folder / "tpm.log") as swtpm:
        deadline = time.monotonic() + _SETUP_SECONDS
        while not control.exists():
            if swtpm.poll() is not None or time.monotonic() > deadline:
                raise ImageError(f"swtpm did not start: {(folder / 'tpm.log').read_text()[-200:]}")
            time.sleep(0.02)
        yield


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, which ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is not None:
                break
            os.killpg(process.pid, number)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
