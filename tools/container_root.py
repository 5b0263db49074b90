"""Copies Python environments, and of the system only what they need, to an empty root: the container's file system.

    python3 tools/container_root.py ROOT PATH…        (in Dockerfile.enclave, with the base image's own Python)

PATH… are folders, and programs. What comes along: the interpreter and its standard library, the C libraries that they need, the
certificates of the public authorities, and the users. What does not: a shell, a package manager, set-uid programs. Standard
library only. Libraries that some file asks for and the base image does not have are listed on standard error.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Opened by name while running, so that no file names them.
LIBRARIES = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")
OF_PROGRAMS = {"tpm2": ("libtss2-tcti-device.so.0",)}
FILES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/nsswitch.conf",
    "/etc/ld.so.cache",
    "/etc/passwd",
    "/etc/group",
)
UNUSED = ("__pycache__", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tkinter", "turtledemo")
MERGED = ("bin", "lib", "lib64", "sbin")  # links into /usr, as in the base
EMPTY = ("dev", "etc/enclave", "models", "proc", "sys", "var/lib/enclave", "run/enclave")


def main(root: Path, paths: list[Path]) -> None:
    """Fill `root`, which must not exist."""
    root.mkdir()
    for name in MERGED:
        if (link := Path("/", name)).is_symlink():
            (root / name).symlink_to(link.readlink())
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
    for name in EMPTY:
        (root / name).mkdir(mode=0o755, parents=True)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    standard = Path(sysconfig.get_path("stdlib"))
    copy_tree(standard, root, without=UNUSED)
    programs = [path for path in paths if not path.is_dir()]
    for path in paths:
        if path.is_symlink():
            under(root, path).parent.mkdir(parents=True, exist_ok=True)
            under(root, path).symlink_to(path.readlink())
        else:
            copy_file(path, root) if path in programs else copy_tree(path, root)
    interpreter = Path(os.path.realpath(sys.executable))
    copy_file(interpreter, root)
    (under(root, interpreter).parent / "python3").symlink_to(
        interpreter.name
    )  # what the environments link to
    for name in FILES:
        if Path(name).exists():
            copy_file(Path(name), root)
    trees = [path for path in paths if path not in programs]
    compiled = [interpreter, *programs, *(f for tree in (standard, *trees) for f in shared_objects(tree))]
    for library in sorted(needed(compiled, within=trees)):
        copy_file(library, root)
    compile_all(root)
    give_to_users(root)


def compile_all(root: Path) -> None:
    """The image is read-only: what is not compiled now is compiled again at each start."""
    how = ("-q", "-j0", "--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", "/")
    command = [sys.executable, "-m", "compileall", *how, str(root)]
    subprocess.run(command, check=False)  # noqa: S603 - a package may bring a file that this Python cannot read


def copy_tree(source: Path, root: Path, *, without: tuple[str, ...] = ()) -> None:
    ignore = shutil.ignore_patterns(*without) if without else None
    shutil.copytree(source, under(root, source), symlinks=True, ignore=ignore, dirs_exist_ok=True)


def copy_file(source: Path, root: Path) -> None:
    """The file itself under the name that it is asked for by, whatever links lead to it."""
    target = under(root, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=True)


def under(root: Path, path: Path) -> Path:
    """Where `path` goes: links between directories (/lib is one) resolved, the file's own name kept."""
    return root / (path.parent.resolve() / path.name).relative_to("/")


def shared_objects(tree: Path) -> Iterator[Path]:
    for path in tree.rglob("*"):
        if ".so" in path.name and path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def needed(compiled: list[Path], *, within: list[Path]) -> set[Path]:
    """The system's libraries that the dynamic loader finds for these files, and those opened by name."""
    loader = next(Path("/lib64").glob("ld-linux-*.so.2"))
    found, missing, own = {loader}, set(), {f.name for tree in within for f in tree.rglob("*.so*")}
    for file in compiled:
        listed = subprocess.run(  # noqa: S603 - the base image's own loader, which goes on where one is missing
            [loader, file], env={"LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
        ).stdout
        for line in listed.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            if arrow and rest.startswith("not found"):
                missing |= {name} - own
            elif arrow:
                found.add(Path(rest.rpartition(" (")[0]))
    if missing:  # of plug-ins for other hardware; the build's log has them, the image's own start tells more
        sys.stderr.write(f"libraries that the base image does not have: {' '.join(sorted(missing))}\n")
    libc = next(path.parent for path in found if path.name == "libc.so.6")
    opened = (*LIBRARIES, *(name for file in compiled for name in OF_PROGRAMS.get(file.name, ())))
    found |= {libc / name for name in opened if (libc / name).exists()}
    return {path for path in found if not any(path.is_relative_to(tree) for tree in within)}


def give_to_users(root: Path) -> None:
    """Everything is root's and nobody else's to write, but for two directories of the gateway's own."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o1755 if path.name != "tmp" else 0o1777)
    gateway = pwd.getpwnam("gateway")
    for name, mode in (("run/enclave", 0o711), ("var/lib/enclave", 0o700)):
        os.chown(root / name, gateway.pw_uid, gateway.pw_gid)
        (root / name).chmod(mode)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
