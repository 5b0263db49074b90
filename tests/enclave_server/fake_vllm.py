"""Stands in for the engine's Python in tests of the supervisor: answers the version probe, and serves like vLLM.

`fake_python(folder, …)` writes an executable for the setting `engine_python`. What it does at its next start stands in
`folder/plan.json`. It is no vLLM and no Python; the real one is tested in `test_vllm.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def fake_python(folder: Path, **plan: Any) -> Path:
    """An executable that starts this file with `folder` as its place for plans and traces."""
    folder.mkdir(exist_ok=True)
    set_plan(folder, **plan)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}" "$@"\n')
    script.chmod(0o755)
    return script


def set_plan(folder: Path, **plan: Any) -> None:
    """Keys: `exit` (a status, at once), `never_ready`, `words` (printed at start), `unended` (without an end of line), `bound` (to these cores), `behaviour` (of FakeEngine)."""
    (folder / "plan.json").write_text(json.dumps(plan))


def starts(folder: Path) -> list[dict[str, Any]]:
    """What each start saw: its process, arguments and environment."""
    trace = folder / "starts.jsonl"
    whole = (
        trace.read_text().rpartition("\n")[0] if trace.exists() else ""
    )  # the last line may still be written
    return [json.loads(line) for line in whole.splitlines()]


def _main(folder: Path, arguments: list[str]) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    if "-c" in arguments:  # the version probe
        if plan.get("absent"):
            sys.exit("ModuleNotFoundError: No module named 'vllm'")
        sys.stdout.write(f"0.0.0+fake\n{Path(__file__).parent}\n")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    worker = subprocess.Popen(["sleep", "600"])
    with (folder / "starts.jsonl").open("a") as trace:
        seen = {
            "pid": os.getpid(),
            "worker": worker.pid,
            "arguments": arguments,
            "environment": dict(os.environ),
            "cores": sorted(os.sched_getaffinity(0)),
        }
        trace.write(json.dumps(seen) + "\n")
    if "bound" in plan:
        os.sched_setaffinity(0, plan["bound"])
    sys.stdout.write(plan.get("words", "starting") + ("" if plan.get("unended") else "\n"))
    sys.stdout.flush()
    if "exit" in plan:
        sys.exit(plan["exit"])
    if plan.get("never_ready"):
        time.sleep(600)
    _serve(
        Path(next(a.removeprefix("--uds=") for a in arguments if a.startswith("--uds="))),
        plan.get("behaviour", {}),
    )


def _serve(socket: Path, behaviour: dict[str, Any]) -> None:
    sys.path.insert(0, str(_REPOSITORY))
    from tests.fake_engine import Behaviour, FakeEngine  # only where it serves: the probe is to be fast

    with FakeEngine(socket, Behaviour(**behaviour)) as engine:
        told = 0
        while True:
            time.sleep(0.02)
            for seen in engine.requests[told:]:  # what vLLM must never do, to try the filter behind it
                told += 1
                words = seen.body.decode(errors="replace")
                sys.stdout.write(
                    f"INFO 01-01 00:00:00 [engine.py:1] got {words}\n{words}\nValueError: {words}\n"
                )
                sys.stdout.write(f"ERROR 01-01 00:00:00 [fake_vllm.py:7] EngineDeadError: {words}\n")
                sys.stdout.write(f"ERROR 01-01 00:00:00 [{words[-40:]}.py:7] {words}Error\n")
                sys.stdout.flush()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
