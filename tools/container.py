"""Builds the container of Dockerfile.enclave with buildah, proves it reproducible, and runs it: no daemon, no registry.

    python -m tools.container build [--target cpu|gateway]     # prints the image's id
    python -m tools.container repro [--target cpu|gateway]     # builds twice from nothing; the ids must be the same
    python -m tools.container run   --config FILE --models DIR [--target …] [-- COMMAND…]

Needs root, buildah, and mmdebstrap for the base where BASE names none; without them it says so and ends with status 77. `run`
is what an operator's container runtime does: a read-only root, and root with no capability but SETUID and SETGID.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from enclave_server.as_user import KEEP, LAST, PR_CAPBSET_DROP, set_capabilities
from image.container import Builder
from image.errors import MISSING, ImageError
from image.packages import Debian
from image.tools import check_tools

ROOT = Path(__file__).resolve().parent.parent
BUILDER = Builder(context=ROOT, store=ROOT / ".cache" / "containers")
STATE = {"/run/enclave": "mode=0711,uid=10001,gid=10001", "/tmp": "mode=1777"}  # noqa: S108 - in a root of its own

_NEWNS, _PRIVATE, _BIND, _REMOUNT_READ_ONLY = 0x20000, 0x44000, 0x5000, 0x1021  # mount(2)
_DETACH, _PIVOT_ROOT = 2, 155  # umount2(2); syscall(2) on x86-64
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> int:
    arguments = _arguments()
    try:
        return _do(arguments)
    except ImageError as exc:
        print(f"{'SKIPPED' if exc.status == MISSING else 'error'}: {exc}", file=sys.stderr)
        return exc.status


def _do(arguments: argparse.Namespace) -> int:
    check_tools("buildah", *(() if arguments.base else ("mmdebstrap",)))
    if arguments.what == "run" and arguments.image:
        return _run(arguments.image, arguments)
    base = arguments.base or BUILDER.base(Debian.locked(ROOT))
    first = BUILDER.build(arguments.target, base)
    print(first, flush=True)
    if arguments.what == "repro":
        second = BUILDER.build(arguments.target, base)
        print(second)
        return 0 if first == second else 1
    return _run(first, arguments) if arguments.what == "run" else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "repro", "run"))
    parser.add_argument("--target", choices=("cpu", "gateway"), default="cpu")
    parser.add_argument(
        "--base", default=os.environ.get("BASE"), help="an image by digest; a Debian made here without"
    )
    parser.add_argument("--image", help="run: one that was built before")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--state", type=Path, help="what /var/lib/enclave is; a new folder without")
    parser.add_argument(
        "--bind", type=Path, action="append", default=[], help="seen inside under the same name"
    )
    given = [*sys.argv[1:], "--"]
    end = given.index("--")
    arguments = parser.parse_args(given[:end])
    arguments.command = given[end + 1 : -1]  # in place of `serve --config /etc/enclave/enclave.toml`
    return arguments


def _run(image: str, arguments: argparse.Namespace) -> int:
    """The image's own command, until it ends; then nothing of it is left but what --state holds."""
    config = json.loads(BUILDER.buildah("inspect", "--type", "image", image))["Docker"]["config"]
    command = [*config["Entrypoint"], *(arguments.command or config["Cmd"])]
    with BUILDER.mounted(image) as root, tempfile.TemporaryDirectory() as made:
        state = arguments.state or Path(made)
        os.chown(state, 10001, 10001)
        binds = {f"{path.resolve()}": path for path in arguments.bind} | {
            "/etc/enclave/enclave.toml": arguments.config,
            "/models": arguments.models,
            "/var/lib/enclave": state,
        }
        child = os.fork()
        if child == 0:
            _become_container(root, binds, command, config["Env"])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _become_container(
    root: Path, binds: dict[str, Path | None], command: list[str], variables: list[str]
) -> None:
    """Never returns."""
    try:
        _call("unshare", _NEWNS)
        _mount(None, Path("/"), None, _PRIVATE)
        _mount(root, root, None, _BIND)
        for name, options in STATE.items():
            _mount(Path("tmpfs"), Path(f"{root}{name}"), "tmpfs", 0, options)
        for inside, outside in binds.items():
            place = Path(f"{root}{inside}")
            if outside is not None:
                place.mkdir(parents=True, exist_ok=True) if outside.is_dir() else place.touch()
                _mount(outside.resolve(), place, None, _BIND)
        for name in ("/dev", "/proc", "/sys"):
            _mount(Path(name), Path(f"{root}{name}"), None, _BIND)
        _mount(None, root, None, _REMOUNT_READ_ONLY)
        os.chdir(root)
        _call(
            "syscall", _PIVOT_ROOT, b".", b"."
        )  # not chroot(2), inside which nobody may make a user namespace
        _call("umount2", b".", _DETACH)
        os.chdir("/var/lib/enclave")
        for number in range(LAST + 1):
            if not KEEP >> number & 1:
                _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
        set_capabilities(KEEP)
        os.execve(command[0], command, dict(variable.split("=", 1) for variable in variables))  # noqa: S606
    except OSError as exc:
        print(exc, file=sys.stderr)
    finally:
        os._exit(127)


def _mount(source: Path | None, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    names = (source and os.fsencode(source), os.fsencode(target), kind and kind.encode())
    _call("mount", *names, flags, options.encode() or None)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


if __name__ == "__main__":
    sys.exit(main())
