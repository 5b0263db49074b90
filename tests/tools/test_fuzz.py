"""The fuzzer's own parts: every target can be loaded, takes every seed, and a defect would be seen."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

from tools import fuzz


@cache
def seeds() -> tuple[bytes, ...]:
    return tuple(fuzz.seeds())


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_every_target_reads_every_seed(target: str) -> None:
    """Evidence of any kind given to any reader is read or malformed; most seeds are of another kind."""
    read = fuzz.load(target)
    assert seeds()
    for seed in seeds():
        read(seed)


def test_a_defect_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is not MalformedError reaches the engine."""
    monkeypatch.setattr(fuzz, "load", lambda _: lambda data: 1 // len(data))
    with pytest.raises(ZeroDivisionError):
        fuzz.with_hypothesis("any:target", seconds=60)


def test_one_target_runs_for_its_time_and_ends() -> None:
    """As `make fuzz` runs it where atheris is not installed."""
    command = [
        sys.executable,
        "-m",
        "tools.fuzz",
        "--only",
        "client_sdk.files:decode",
        "--engine",
        "hypothesis",
        "--seconds",
        "1",
    ]
    assert subprocess.run(command, capture_output=True, check=False, timeout=240).returncode == 0
