"""Becomes a user and runs a command. A script of its own: standard library only, imports nothing of ours.

    python -I -S as_user.py USER COMMAND…

Started as root, with the capabilities SETUID and SETGID, it becomes USER with USER's groups and hands these two capabilities on,
so that the command can start an engine as another user (`engine_user`); every other one is gone for good. Started as
anybody else, it just runs the command. A service manager that sets ambient capabilities needs none of this.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import struct
import sys
from collections.abc import Sequence
from typing import NoReturn

SETGID, SETUID, LAST = 6, 7, 63  # capabilities(7)
KEEP = 1 << SETGID | 1 << SETUID
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_CAP_AMBIENT = 8, 24, 47  # prctl(2)
AMBIENT_RAISE, AMBIENT_CLEAR_ALL = 2, 4
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_libc = ctypes.CDLL(None, use_errno=True)


def main(user: str, command: Sequence[str]) -> NoReturn:
    if os.geteuid() == 0:
        become(user)
    os.execv(command[0], [*command])  # noqa: S606 - exactly this program, no shell


def become(user: str) -> None:
    """Root becomes `user`, and keeps of root's rights that of becoming yet another."""
    entry = pwd.getpwnam(user)
    for number in range(LAST + 1):
        if number not in (SETGID, SETUID):
            _libc.prctl(
                PR_CAPBSET_DROP, number, 0, 0, 0
            )  # EPERM without SETPCAP: then others have seen to it
    _call("prctl", PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(os.getgrouplist(user, entry.pw_gid))
    os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
    os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    set_capabilities(KEEP)
    for number in (SETGID, SETUID):
        _call("prctl", PR_CAP_AMBIENT, AMBIENT_RAISE, number, 0, 0)


def give_up_capabilities() -> None:
    """This process, and whatever it starts, is its user and nothing more."""
    with contextlib.suppress(OSError):  # a kernel before 4.3 has no ambient ones
        _call("prctl", PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    set_capabilities(0)


def set_capabilities(mask: int) -> None:
    """Permitted, effective and inheritable."""
    header = struct.pack("=Ii", _VERSION, 0)
    _call("capset", header, struct.pack("=6I", *(mask & 0xFFFFFFFF,) * 3, *(mask >> 32,) * 3))


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
