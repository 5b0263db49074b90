"""Runs the engine and dies with the gateway. A script of its own: standard library only, imports nothing of ours.

    python -I -S engine/child.py ISOLATION USER PRIVATE_DIR COMMAND…

It sits between the gateway and the engine so that no `kill -9` of either leaves anything behind:
- standard input is the gateway's lifeline: its end means the gateway is gone, and the engine is killed;
- the engine gets a process group of its own and, where the kernel allows, its own process, network and mount
  namespaces: when its first process dies, the kernel kills every other; it has no network but its own loopback;
- at the end PRIVATE_DIR, the engine's sockets and temporary files with it, is removed; the lock on the directory above,
  which comes as an open file, is kept until then, and the engine never has it;
- with a USER, `UID:GID` (`-` for none), it becomes that user before anything else, and keeps no right of the gateway's.

One byte `T` on standard input asks the engine to end (SIGTERM). The first line written is `PID NAMESPACES`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence

NEWNS, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000  # clone(2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38  # prctl(2)
PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION = 0x20080522  # capset(2)
NOSUID, NODEV, NOEXEC = 2, 4, 8  # mount(2)
PRIVATE_TREE = 0x44000  # MS_PRIVATE | MS_REC
SIOCSIFFLAGS, IFF_UP_RUNNING = 0x8914, 0x41  # netdevice(7)
REFUSED = 78  # the exit status when isolation is required and not to be had

_NAMES = {NEWUSER: "user", NEWPID: "pid", NEWNET: "net", NEWNS: "mount"}
_WAYS = (
    NEWPID | NEWNET | NEWNS,
    NEWUSER | NEWPID | NEWNET | NEWNS,
)  # as root; as anybody, where that is allowed
_libc = ctypes.CDLL(None, use_errno=True)


def main(isolation: str, user: str, private: str, command: Sequence[str]) -> int:
    if user != "-":
        try:
            _become(*map(int, user.split(":")))
        except OSError as exc:
            _say(
                f"engine_user: cannot become {user} ({exc.strerror}); it takes the capabilities SETUID and SETGID"
            )
            return REFUSED
        _empty(private)
    flags = 0 if isolation == "none" else next((way for way in _WAYS if _works(way)), 0)
    if isolation == "required" and not flags:
        _say("namespaces of its own are required for the engine, and the kernel does not allow them")
        return REFUSED
    _unshare(flags)
    held, go = os.pipe()
    engine = os.fork()
    if engine == 0:
        os.close(go)
        _become_engine(flags, command, held)
    os.close(held)
    os.setpgid(engine, engine)
    _say(f"{engine} {','.join(name for flag, name in _NAMES.items() if flags & flag) or 'none'}")
    os.write(go, b"g")
    try:
        return _attend(engine)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _become(uid: int, gid: int) -> None:
    """That user, in that group alone, without a capability. What it makes, its group may read and remove."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _libc.prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL, 0, 0, 0)
    _call(_libc.capset, struct.pack("=Ii", CAPABILITY_VERSION, 0), bytes(24))
    _libc.prctl(
        PR_SET_DUMPABLE, 1, 0, 0, 0
    )  # a change of user hides /proc/self, which user namespaces are made by
    os.umask(0o007)


def _empty(folder: str) -> None:
    """Of what an earlier engine left there; only its user could make all of it go."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)  # noqa: PTH108 - no pathlib under -S


def _attend(engine: int) -> int:
    """Wait until the engine ends, or the gateway does. Nothing of the engine's group is left afterwards."""
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the gateway's to handle; it tells us
        signal.signal(ignored, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(signals, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    while True:
        pid, status = os.waitpid(engine, os.WNOHANG)
        if pid:
            _signal(lambda: os.killpg(engine, signal.SIGKILL))
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        for key, _ in selector.select():
            order = os.read(key.fd, 64)
            if key.fd == 0 and order:
                _signal(lambda: os.kill(engine, signal.SIGTERM))
            elif key.fd == 0:
                selector.unregister(0)
                _signal(lambda: os.killpg(engine, signal.SIGKILL))


def _become_engine(flags: int, command: Sequence[str], held: int) -> None:
    """In the new process: finish its isolation and execute the engine. Never returns."""
    try:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if not os.read(held, 1):  # closed without a word: our parent died before the line above
            os._exit(1)
        if flags:
            _furnish()
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, 1 << 16)  # of the gateway's, the lock among them
        os.execv(command[0], [*command])  # noqa: S606 - exactly this program, no shell
    except OSError as exc:
        _say(f"the engine could not be started: {exc}")
    finally:
        os._exit(127)


def _works(flags: int) -> bool:
    """Whether these namespaces can be had here: tried in a process that is thrown away."""
    probe = os.fork()
    if probe:
        return os.waitpid(probe, 0)[1] == 0
    try:
        _unshare(flags)
        inner = os.fork()
        if inner:
            os._exit(os.waitpid(inner, 0)[1] != 0)
        _furnish()
        os._exit(0)
    finally:
        os._exit(1)


def _unshare(flags: int) -> None:
    if not flags:
        return
    uid, gid = os.getuid(), os.getgid()
    _call(_libc.unshare, flags)
    if flags & NEWUSER:  # user_namespaces(7): the same user inside as outside
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 - no pathlib under -S
                file.write(text)


def _furnish() -> None:
    """In new namespaces: a /proc that shows them, a /dev/shm that goes with them, and a loopback interface."""
    _call(_libc.mount, b"none", b"/", None, PRIVATE_TREE, None)
    _call(_libc.mount, b"proc", b"/proc", b"proc", NOSUID | NODEV | NOEXEC, None)
    _call(_libc.mount, b"tmpfs", b"/dev/shm", b"tmpfs", NOSUID | NODEV, b"mode=1777")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP_RUNNING))


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def _signal(send: Callable[[], None]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        send()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
