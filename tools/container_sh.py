#!/opt/engine/bin/python -IS
# ruff: noqa: EXE001 - executable in the image alone
"""The image's `/bin/sh`, which is no shell: it answers the one question that vLLM for CPU asks one.

vLLM asks `sh -c "lscpu --json --extended=CPU,CORE,NODE --online"` for the processors. Anything else is refused.
"""

import json
import sys
from pathlib import Path

QUESTION = ["-c", "lscpu --json --extended=CPU,CORE,NODE --online"]
SYSTEM = Path("/sys/devices/system/cpu")


def number(path: Path, otherwise: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return otherwise


def online() -> list[int]:
    """`0-3,8` and the like, as the kernel writes it."""
    ranges = (part.split("-") for part in (SYSTEM / "online").read_text().strip().split(","))
    return [cpu for ends in ranges for cpu in range(int(ends[0]), int(ends[-1]) + 1)]


def processors() -> list[dict[str, int]]:
    """A core is told from its siblings by the lowest of them, since core ids are counted anew in each socket."""
    found = []
    for cpu in online():
        folder = SYSTEM / f"cpu{cpu}"
        try:
            siblings = (folder / "topology" / "thread_siblings_list").read_text()
            core = int(siblings.replace("-", ",").split(",")[0])
        except (OSError, ValueError):
            core = number(folder / "topology" / "core_id", cpu)
        node = next((int(path.name[4:]) for path in sorted(folder.glob("node[0-9]*"))), 0)
        found.append({"cpu": cpu, "core": core, "node": node})
    return found


def main(arguments: list[str]) -> int:
    if arguments != QUESTION:
        sys.stderr.write("there is no shell in this image\n")
        return 127
    sys.stdout.write(json.dumps({"cpus": processors()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
