"""How long the manifest of a model takes, beside `sha256sum` run on as many processes. `make bench-model` prints the table.

The model is made of equal files in a temporary directory, which is removed; the page cache holds it, so that the disk is
not what is measured. Each round runs every way once, in turns; what counts is the median. GNU's `sha256sum` does not use
the processor's SHA instructions everywhere, so OpenSSL's own command stands beside it where it is installed.

    python -m benchmarks.model [MiB] [files] [rounds]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from enclave_server.model.manifest import read_manifest

GOAL = 1.3


def make(folder: Path, mebibytes: int, files: int) -> None:
    """Files of random bytes, each another."""
    for i in range(files):
        with (folder / f"model-{i:05}.safetensors").open("wb") as file:
            for _ in range(mebibytes // files):
                file.write(os.urandom(1024 * 1024))


def on_processes(folder: Path, command: Sequence[str], count: int) -> dict[str, str]:
    """Each file's digest by a command that prints `<digest> <name>`, one process a file and `count` at a time."""
    names = "\0".join(sorted(path.name for path in folder.iterdir()))
    done = subprocess.run(
        ["xargs", "-0", "-n1", f"-P{count}", *command],
        cwd=folder,
        input=names,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = (line.replace("*", "").split() for line in done.stdout.splitlines())
    return {name: digest for digest, name in lines}


def main(arguments: Sequence[str]) -> None:
    mebibytes, files, rounds = (*map(int, arguments), *(1024, 8, 5)[len(arguments) :])
    cores = len(os.sched_getaffinity(0))
    with TemporaryDirectory(prefix="bench-model-") as name:
        folder = Path(name)
        make(folder, mebibytes, files)
        ways: dict[str, Callable[[], dict[str, str]]] = {
            "manifest": lambda: {file.path: file.sha256 for file in read_manifest(folder).files},
            "sha256sum": lambda: on_processes(folder, ["sha256sum"], cores),
        }
        if shutil.which("openssl"):
            ways["openssl dgst"] = lambda: on_processes(folder, ["openssl", "dgst", "-sha256", "-r"], cores)
        expected = ways["manifest"]()
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, run in ways.items():
                start = perf_counter()
                found = run()
                seconds[way].append(perf_counter() - start)
                if found != expected:
                    sys.exit(f"{way} found other digests")
    print(f"{mebibytes} MiB in {files} files, {cores} at a time (median of {rounds}):")
    ours = median(seconds["manifest"])
    for way, found_seconds in seconds.items():
        took = median(found_seconds)
        ratio = "" if way == "manifest" else f"   the manifest takes {ours / took:.2f} of it"
        print(f"  {way:14} {took:6.2f} s {mebibytes / took:7.0f} MiB/s{ratio}")
    if ours > GOAL * median(seconds["sha256sum"]):
        sys.exit(f"the manifest takes more than {GOAL} of sha256sum's time")


if __name__ == "__main__":
    main(sys.argv[1:])
