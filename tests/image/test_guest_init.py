"""What the guest does before and beside the kernel: modules, disks, dm-verity's table, the configuration, the last locks."""

from __future__ import annotations

import ast
import errno
import os
import signal
import struct
import sys
import tempfile
import time
from hashlib import sha256
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.collect import tsm
from enclave_server import as_user
from enclave_server.verity import append_tree
from image.guest import dm, init, lockdown, modules, net, start
from image.guest.cmdline import Verity
from image.guest.disks import find_disk, named
from image.guest.linux import Refused
from tests.tsm import tsm as tsm_folder

GUEST = Path(init.__file__).parent
VERITY = Verity(root_hash=b"\xab" * 32, data_blocks=9, salt=b"\x01\x02")


@pytest.mark.parametrize("file", sorted(GUEST.glob("*.py")), ids=lambda file: file.name)
def test_the_guest_needs_nothing_but_the_standard_library(file: Path) -> None:
    """The initrd has no other package, and what it imports can be read in a sitting."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        for name in names:
            assert name.partition(".")[0] in sys.stdlib_module_names or name.startswith("image.guest")


def test_process_1_can_be_started_by_the_kernel() -> None:
    """The initrd's /init is this file: executable, by the interpreter that Debian has, isolated from any environment."""
    assert (GUEST / "init.py").read_text().startswith("#!/usr/bin/python3.11 -ISB\n")
    assert (GUEST / "init.py").stat().st_mode & 0o111
    assert start.__file__ == str(init.START)


def module_list(folder: Path, **needs: str) -> Path:
    """A list of modules, each a file that says what it needs."""
    for name, needed in needs.items():
        (folder / f"{name}.ko").write_bytes(b"ELF\0license=GPL\0depends=%s\0" % needed.encode())
    listed = folder / "modules.list"
    listed.write_text("".join(f"{folder}/{name}.ko\n" for name in needs))
    return listed


def test_modules_are_loaded_in_the_order_of_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after those that it needs; drivers of hardware that is not there, and what is there already, are passed over."""
    loaded: list[str] = []

    def finit_module(path: Path) -> None:
        loaded.append(path.name)
        if path.name in ("tdx.ko", "erofs.ko.xz"):
            raise OSError(errno.ENODEV if path.name == "tdx.ko" else errno.EEXIST, "")

    monkeypatch.setattr(modules, "finit_module", finit_module)
    listed = module_list(tmp_path, dm_mod="", dm_verity="dm-mod", tdx="")
    listed.write_text(f"{listed.read_text()}/m/erofs.ko.xz\n")
    modules.load(listed)
    assert loaded == ["dm_mod.ko", "dm_verity.ko", "tdx.ko", "erofs.ko.xz"]


def test_what_needs_absent_hardware_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without Hyper-V its bus does not load; its disks and network would make the kernel complain of symbols that are missing."""
    loaded: list[str] = []

    def finit_module(path: Path) -> None:
        loaded.append(path.name)
        if path.name == "hv_vmbus.ko":
            raise OSError(errno.ENODEV, "")

    monkeypatch.setattr(modules, "finit_module", finit_module)
    monkeypatch.setattr("image.guest.linux._CONSOLE", Path("/nonexistent"))
    needs = {"hv_vmbus": "", "hv_storvsc": "scsi_mod,hv-vmbus", "hv_more": "hv_storvsc", "virtio_net": ""}
    modules.load(module_list(tmp_path, **needs))
    assert loaded == ["hv_vmbus.ko", "virtio_net.ko"]
    assert capfd.readouterr().err == "enclave-init: no hardware for hv_vmbus.ko\n"


def test_a_module_that_does_not_load_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature that the kernel does not know is no missing hardware."""

    def finit_module(path: Path) -> None:
        raise OSError(errno.EKEYREJECTED, "Key was rejected by service")

    monkeypatch.setattr(modules, "finit_module", finit_module)
    with pytest.raises(Refused, match="rejected"):
        modules.load(module_list(tmp_path, dm_mod=""))


def test_nothing_is_loaded_that_goes_around_the_firewall() -> None:
    """The rules see IPv4 and IPv6; the host's own sockets would be a way out that they do not."""
    assert not any("vsock" in name or "hv_sock" in name for name in modules.NEEDED)


@pytest.mark.parametrize("text", ["m/a.ko", "/m/../a.ko", "/m/a.so", "/m/a.ko\n/m/a.ko", "\n"])
def test_a_list_of_anything_but_modules_is_refused(text: str) -> None:
    """Absolute paths of modules, each once."""
    with pytest.raises(Refused):
        modules.parse_list(text)


def disks(folder: Path, **serials: str) -> Path:
    for name, serial in serials.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "serial").write_text(f"{serial}\n")
        (folder / name / "uevent").write_text(f"DEVNAME={name}\n")
    return folder


def test_disks_are_found_by_serial_and_else_by_the_name_of_a_partition(tmp_path: Path) -> None:
    """QEMU gives disks a serial; a cloud's one disk has named partitions."""
    sys_block = disks(tmp_path, vda="enclave-config", vdb="enclave-root")
    assert find_disk("enclave-root", sys=sys_block) == Path("/dev/vdb")
    (tmp_path / "sda2").mkdir()
    (tmp_path / "sda2" / "uevent").write_text("DEVTYPE=partition\nPARTNAME=enclave-model\n")
    assert find_disk("enclave-model", sys=sys_block) == Path("/dev/sda2")


def test_no_disk_and_two_disks_are_refused(tmp_path: Path) -> None:
    """Which of two it would be is the host's choice, so neither is taken."""
    sys_block = disks(tmp_path, vda="enclave-root", vdb="enclave-root", vdc="other")
    with pytest.raises(Refused, match="found vda and vdb"):
        find_disk("enclave-root", sys=sys_block)
    with pytest.raises(Refused, match="found none"):
        find_disk("enclave-config", seconds=0, sys=sys_block)
    assert named("enclave-root-2", sys_block) == []


def test_the_table_line_says_everything_and_stops_at_a_wrong_block() -> None:
    """The fields of the kernel's verity target, with the tree directly behind the data and no superblock."""
    line = dm.parameters(Path("/dev/vda"), VERITY).split()
    assert line[:8] == ["1", "/dev/vda", "/dev/vda", "4096", "4096", "9", "9", "sha256"]
    assert line[8:] == ["ab" * 32, "0102", "2", "panic_on_corruption", "panic_on_error"]


def test_requests_have_the_kernels_layout() -> None:
    """struct dm_ioctl is 312 bytes, struct dm_target_spec 40, and the numbers are those of the kernel's header."""
    assert (dm.HEADER, dm.TARGET) == (312, 40)
    assert dm._IOWR | dm.LOAD == 0xC138FD09
    table = dm.target(72, "verity", "1 x")
    request = dm.request("root", table, targets=1)
    assert len(request) == 312 + len(table) == struct.unpack_from("=I", request, 12)[0]
    assert struct.unpack_from("=II", request, 16) == (312, 1)
    assert request[48:53] == b"root\0"
    assert struct.unpack_from("=QQiI", table) == (0, 72, 0, len(table))
    assert table[24:31] == b"verity\0"
    assert table[40:] == b"1 x\0\0\0\0\0"


@pytest.mark.parametrize(("device", "minor"), [(0xFE00, 0), (0xFE01, 1), (0x10FE01, 0x101)])
def test_minor_numbers_are_read_as_the_kernel_writes_them(device: int, minor: int) -> None:
    """The low byte, and what lies above the major number's twelve bits."""
    assert dm.minor(device) == minor


@given(st.binary(min_size=1, max_size=20_000), st.binary(min_size=1, max_size=64))
def test_a_disks_tree_is_held_against_the_root_hash(content: bytes, salt: bytes) -> None:
    """What the build's tree has as its root is what the guest finds; another root hash is refused with both."""
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder, "disk")
        disk.write_bytes(content + bytes(-len(content) % dm.BLOCK))
        made = append_tree(disk, salt)
        dm._check_root(
            "root", disk, Verity(root_hash=made.root_hash, data_blocks=made.data_blocks, salt=salt)
        )
        with pytest.raises(Refused, match=made.root_hash.hex()):
            dm._check_root("root", disk, Verity(root_hash=bytes(32), data_blocks=made.data_blocks, salt=salt))


def test_the_configuration_is_the_measured_one(tmp_path: Path) -> None:
    """Zeros fill the disk's last block; any other byte is another configuration."""
    disk, content = tmp_path / "disk", b'tee = "tdx"\n'
    disk.write_bytes(content.ljust(4096, b"\0"))
    assert init.read_config(disk, sha256(content).digest()) == content
    for other in (content + b" ", content[1:], b"", content * 200_000):
        disk.write_bytes(other.ljust(4096, b"\0"))
        with pytest.raises(Refused, match="SHA-256"):
            init.read_config(disk, sha256(content).digest())


def test_the_last_locks_are_written(tmp_path: Path) -> None:
    """No kexec, no ptrace, no debugging key; then no module, and the kernel's own lockdown."""
    for name in lockdown.SYSCTLS:
        (tmp_path / name.replace(".", "/")).parent.mkdir(parents=True, exist_ok=True)
    lockdown.set_all(lockdown.SYSCTLS, tmp_path)
    assert (tmp_path / "kernel/kexec_load_disabled").read_text() == "1\n"
    assert (tmp_path / "kernel/yama/ptrace_scope").read_text() == "3\n"
    assert (tmp_path / "kernel/sysrq").read_text() == "0\n"


def test_routes_and_addresses_have_the_kernels_layout() -> None:
    """struct rtentry is 120 bytes on 64-bit Linux, with the interface's name by address."""
    host = net.route(IPv4Address("192.0.2.1"), None, interface=0x1122334455667788)
    assert len(host) == 120
    assert host[8:16] == b"\x02\0\0\0\xc0\0\x02\x01"
    assert host[44:48] == b"\xff" * 4
    assert struct.unpack_from("=H", host, 56)[0] == 5
    assert struct.unpack_from("=Q", host, 88)[0] == 0x1122334455667788
    default = net.route(IPv4Address(0), IPv4Address("192.0.2.1"), interface=1)
    assert default[28:32] == b"\xc0\0\x02\x01"
    assert default[44:48] == bytes(4)
    assert struct.unpack_from("=H", default, 56)[0] == 3


def test_one_interface_is_taken_and_two_are_refused(tmp_path: Path) -> None:
    """Which of two the address goes to would be the host's choice."""
    (tmp_path / "lo").mkdir()
    with pytest.raises(Refused, match="none"):
        net.the_interface(tmp_path)
    (tmp_path / "eth0").mkdir()
    (tmp_path / "eth0" / "address").write_text("52:54:00:12:34:56\n")
    assert net.the_interface(tmp_path) == "eth0"
    assert net.hardware_address("eth0", tmp_path) == bytes.fromhex("525400123456")
    (tmp_path / "eth1").mkdir()
    with pytest.raises(Refused, match="eth0 and eth1"):
        net.the_interface(tmp_path)


def test_the_gateway_is_started_as_in_the_container() -> None:
    """By the script that becomes its user, with the measured file, and no setting from anywhere else."""
    dockerfile = (GUEST.parents[1] / "Dockerfile.enclave").read_text()
    entry = ast.literal_eval(dockerfile.partition("\nENTRYPOINT ")[2].partition("\n")[0])
    command = ast.literal_eval(dockerfile.partition("\nCMD ")[2].partition("\n")[0])
    assert list(start.GATEWAY) == [*entry, *command]
    assert start.GATEWAY[2].endswith(f"enclave_server/{Path(as_user.__file__).name}")
    assert not any(name.startswith("ENCLAVE_") for name in start.ENVIRONMENT)


def test_the_gateway_finds_the_entries_that_are_prepared_for_it(tmp_path: Path) -> None:
    """As many, under the names that it looks for."""
    start.prepare_reports(tmp_path, os.getuid(), os.getgid())
    assert {path.name for path in tmp_path.iterdir()} == {
        tsm.prepared_name(number) for number in range(tsm.MOST_PREPARED)
    }
    assert start.REPORTS == tsm.TSM


def test_the_address_is_renewed_in_time_whatever_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that end again and again do not put it off, and a network that is away does not end the machine."""
    now, asked = 0.0, list[float]()
    answers: list[int | Exception] = [
        30,
        OSError(errno.ENETDOWN, "down"),
        Refused("network", expected=1, found=0),
    ]
    ended = iter([None] * 19 + [(7, 0)])

    def wait(_: object, seconds: float) -> object:
        nonlocal now
        now += min(seconds, 10.0)
        return SimpleNamespace(si_signo=signal.SIGCHLD) if seconds > 10.0 else None

    def take_address(*, attempts: int) -> int:
        asked.append(now)
        answer = answers.pop(0) if answers else 1000 * attempts
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(signal, "sigtimedwait", wait)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(start, "take_address", take_address)
    monkeypatch.setattr(start, "_next_ended", lambda: next(ended))
    assert start.supervise(7, 25.0) == 0
    assert asked == [25.0, 55.0, 115.0, 175.0]


def test_a_machine_without_a_tee_has_no_entries(tmp_path: Path) -> None:
    """The kernel's folder is there, and says that nobody answers; the gateway will name the TEE that it misses."""
    with tsm_folder(tmp_path / "report", bytes) as kernel:
        kernel.mkdir_errors = [errno.ENXIO, errno.EIO]
        start.prepare_reports(kernel.folder, 0, 0)
        with pytest.raises(OSError, match="Input/output"):
            start.prepare_reports(kernel.folder, 0, 0)


def test_a_prepared_entry_is_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever could open one could lock it, and keep the gateway from its evidence."""

    make = Path.mkdir

    def mkdir(entry: Path) -> None:
        make(entry)
        (entry / "generation").touch(0o444)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    start.prepare_reports(tmp_path, os.getuid(), os.getgid())
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.glob("*/generation")}
    assert modes == {0o400}


def test_units_and_image_open_the_same_hardware_to_the_gateway() -> None:
    """Under systemd tmpfiles does what the image's start does itself."""
    rules = (GUEST.parents[1] / "deploy/systemd/enclave.tmpfiles.conf").read_text()
    for path, mode in start.HARDWARE.items():
        assert f"z {path} {mode:04o} root gateway -\n" in rules
    for number in range(start.PREPARED):
        assert f"d- {start.REPORTS}/prepared-{number} - - - -\n" in rules
