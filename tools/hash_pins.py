"""Write a lock's hashes anew from its own pins: `python -m tools.hash_pins requirements-engine-cpu.lock`.

For an environment that is installed with `--no-deps`, where a resolver has no say: its pins are edited by hand, and pip
tells which file each stands for. The hashes are those of one platform's files, this one's; comments at the top stay.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

PIN = re.compile(r"^([A-Za-z0-9._-]+==[^\s\\;]+)", re.MULTILINE)


def pins(text: str) -> list[str]:
    return sorted(PIN.findall(text), key=str.lower)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def hashes(wanted: list[str]) -> dict[str, str]:
    """The SHA-256 of the wheel that pip would install for each name; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed", "--no-deps"]
    command += ["--only-binary", ":all:", "--report", "-", *wanted]
    report = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own arguments
    return {
        normal(item["metadata"]["name"]): item["download_info"]["archive_info"]["hashes"]["sha256"]
        for item in json.loads(report)["install"]
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the hashes of a lock's own pins.")
    parser.add_argument("lock", type=Path)
    lock: Path = parser.parse_args().lock
    text = lock.read_text(encoding="utf-8")
    comments = [line for line in text.splitlines() if line.startswith("#")]
    wanted = pins(text)
    found = hashes(wanted)
    entries = [f"{pin} \\\n    --hash=sha256:{found[normal(pin.partition('==')[0])]}" for pin in wanted]
    partial = lock.with_suffix(".new")
    partial.write_text("\n".join([*comments, *entries]) + "\n", encoding="utf-8")
    partial.replace(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
