"""Process 1 in the root: rules, network, model, and then the gateway for as long as it runs.

The root and the configuration were checked in the initrd (`init.py`). There is no shell, no login and nothing that could start one;
when the gateway ends, so does the machine. Nobody starts it again: what it was, its keys and its clients' statement, went with it.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # python -I looks nowhere of its own

from image.guest.disks import find_disk
from image.guest.dm import open_verity
from image.guest.firewall import close_network
from image.guest.gpu import open_gpus
from image.guest.init import CONFIG_FOLDER, PYTHON, make_and_mount
from image.guest.linux import (
    NO_DEV,
    NO_EXEC,
    NO_SUID,
    READ_ONLY,
    Refused,
    keep_ctrl_alt_del,
    mount,
    no_new_privileges,
    power_off,
    say,
)
from image.guest.lockdown import BEFORE_NETWORK, lock_down, set_all
from image.guest.net import bring_up, take_address
from image.guest.settings import Guest, parse_guest

CONFIG, STATE, MODEL = CONFIG_FOLDER / "enclave.toml", Path("/var/lib/enclave"), Path("/models")
_SITE = "/opt/gateway/lib/python3.11/site-packages"
GATEWAY = (
    *(PYTHON, "-IS", f"{_SITE}/enclave_server/as_user.py", "gateway"),
    *("/opt/gateway/bin/enclave-server", "serve", "--config", str(CONFIG)),
)
ENVIRONMENT = {"PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"}
# By what the gateway asks the hardware for evidence, where the machine has it.
HARDWARE = {
    "/dev/tdx_guest": 0o660,
    "/dev/sev-guest": 0o660,
    "/dev/tpmrm0": 0o660,
    "/sys/firmware/acpi/tables/data/CCEL": 0o440,
    "/sys/kernel/security/tpm0/binary_bios_measurements": 0o440,
    "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384": 0o660,
}
REPORTS, PREPARED = Path("/sys/kernel/config/tsm/report"), 8  # as attestation.collect.tsm looks for
_FILES = 65_536
_AGAIN = 60.0  # seconds until an address is asked for again when nobody answered
_IGNORED = {signal.SIGPIPE, signal.SIGXFSZ}  # by Python itself
_WATCHED = {signal.SIGCHLD, signal.SIGINT, signal.SIGTERM}


def main() -> None:
    """Never returns."""
    try:
        guest = parse_guest(CONFIG.read_bytes())
        mount_memory(guest)
        set_all(BEFORE_NETWORK)
        close_network(guest)
        renew_after = bring_up(guest)
        if guest.model is not None:
            device = open_verity("model", find_disk("enclave-model"), guest.model)
            mount(str(device), MODEL, "erofs", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC)
            say(f"model {guest.model.root_hash.hex()}")
        if guest.gpus:
            open_gpus()
        keep_ctrl_alt_del()
        lock_down()
        say("ready")
        say(f"gateway ended with status {supervise(start_gateway(), renew_after)}")
    except Refused as exc:
        say(f"REFUSED {exc}")
    except BaseException as exc:  # noqa: BLE001 - process 1 must not end: the kernel's panic would hide why
        say(f"REFUSED start: expected no error, found {type(exc).__name__}: {exc}")
    power_off()


def mount_memory(guest: Guest) -> None:
    """Everything that can be written, and the kernel's interfaces that the gateway asks for evidence."""
    user = pwd.getpwnam("gateway")
    owner = f"uid={user.pw_uid},gid={user.pw_gid}"
    none = NO_SUID | NO_DEV | NO_EXEC
    mount("tmpfs", Path("/run"), "tmpfs", none, "mode=0755,size=64m")
    mount("tmpfs", Path("/tmp"), "tmpfs", NO_SUID | NO_DEV, "mode=1777")  # noqa: S108 - engines compile code there
    mount("tmpfs", STATE, "tmpfs", none, f"mode=0700,{owner},size={guest.state_megabytes}m")
    make_and_mount("tmpfs", Path("/dev/shm"), "tmpfs", none, "mode=1777")  # noqa: S108 - the only one there is
    make_and_mount("configfs", Path("/sys/kernel/config"), "configfs", none)
    make_and_mount("securityfs", Path("/sys/kernel/security"), "securityfs", none)
    runtime = Path("/run/enclave")
    runtime.mkdir(mode=0o711)
    os.chown(runtime, user.pw_uid, user.pw_gid)
    for file, mode in ((Path(name), mode) for name, mode in HARDWARE.items()):
        if file.exists():
            os.chown(file, 0, user.pw_gid)
            file.chmod(mode)
    if REPORTS.exists():
        prepare_reports(REPORTS, user.pw_uid, user.pw_gid)


def prepare_reports(folder: Path, uid: int, gid: int) -> None:
    """Entries of configfs-tsm that the gateway alone may use: files of one that it made itself would be root's."""
    for number in range(PREPARED):
        entry = folder / f"prepared-{number}"
        try:
            entry.mkdir()
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # no TEE of this machine answers there
                return
            raise
        for file in entry.iterdir():
            os.chown(file, uid, gid)
            file.chmod(file.stat().st_mode & 0o600)


def start_gateway() -> int:
    """The gateway's process: as a container runtime would start it, with nothing to read from."""
    no_new_privileges()
    os.umask(0o077)
    os.chdir(STATE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    nothing = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)
    return os.posix_spawn(
        PYTHON,
        GATEWAY,
        ENVIRONMENT,
        file_actions=[nothing],
        setsid=True,
        setsigmask=[],
        setsigdef={*_WATCHED, *_IGNORED},
    )


def supervise(gateway: int, renew_after: float | None) -> int:
    """Bury what dies, renew the address, pass on the wish to stop. Returns the gateway's exit status."""
    due = None if renew_after is None else time.monotonic() + renew_after  # whatever else happens until then
    while True:
        left = 3600.0 if due is None else max(0.0, due - time.monotonic())
        received = signal.sigtimedwait(_WATCHED, left)
        if due is not None and time.monotonic() >= due:
            due = time.monotonic() + _renew()
        if received is not None and received.si_signo != signal.SIGCHLD:
            os.kill(gateway, signal.SIGTERM)
        while (ended := _next_ended()) is not None:
            if ended[0] == gateway:
                return os.waitstatus_to_exitcode(ended[1])


def _next_ended() -> tuple[int, int] | None:
    pid, status = os.waitpid(-1, os.WNOHANG)
    return (pid, status) if pid else None


def _renew() -> float:
    """Seconds until the next time. A network that is away for a while is no reason to lose what is in memory."""
    try:
        return take_address(attempts=1)
    except (Refused, OSError):
        return _AGAIN


if __name__ == "__main__":
    main()
