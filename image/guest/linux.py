"""System calls that Python has no function for, and the one way this program says no."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import NoReturn

# mount(2), umount2(2)
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, MOVE = 1, 2, 4, 8, 32, 8192
POWER_OFF, NO_CTRL_ALT_DEL = 0x4321FEDC, 0  # reboot(2)
_FINIT_MODULE, _COMPRESSED = (
    313,
    4,
)  # finit_module(2) on x86-64, and its flag for a file that the kernel unpacks
_NO_NEW_PRIVILEGES = 38  # prctl(2)
_CONSOLE = Path("/dev/console")
_libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):  # noqa: N818 - what the console says
    """Why this machine does not start. Ends in one line on the console, and without power."""

    def __init__(self, what: str, *, expected: object, found: object) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")


def say(line: str) -> None:
    """One line on the console, which the host reads."""
    text = f"enclave-init: {''.join(c if c.isprintable() else '?' for c in line)}\n".encode()
    try:
        console = os.open(_CONSOLE, os.O_WRONLY | os.O_NOCTTY)
        os.write(console, text)
        os.close(console)
    except OSError:
        os.write(2, text)


def power_off() -> NoReturn:
    """Nothing is left to be saved: all that can be written is memory."""
    while True:
        _libc.reboot(POWER_OFF)
        time.sleep(1)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    names = source.encode(), os.fsencode(target), kind.encode() or None
    _call("mount", *names, flags, options.encode() or None)


def keep_ctrl_alt_del() -> None:
    """Ctrl-Alt-Del is a signal to this process, and not the end of the machine."""
    _call("reboot", NO_CTRL_ALT_DEL)


def no_new_privileges() -> None:
    """No program that is started gains rights by being started: none is set-uid, and none could be."""
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def finit_module(path: Path) -> None:
    with path.open("rb") as file:
        flags = 0 if path.suffix == ".ko" else _COMPRESSED
        _call("syscall", _FINIT_MODULE, file.fileno(), b"", flags)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
