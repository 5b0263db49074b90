"""Runs a user's program under one version of openai, with every warning an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
VERSIONS = {"3.x": Path(sys.executable), "2.x": ROOT / ".venv-openai2" / "bin" / "python"}
Run = Callable[..., dict[str, Any]]


@contextmanager
def running(version: str, program: str, folder: Path) -> Iterator[Run]:
    """Runs cases of a program of this folder, all in one process, since starting one takes longer than what it asks.

    Nothing may stand on its standard error, neither then nor when it ends.
    """
    python = VERSIONS[version]
    if not python.exists():
        pytest.skip("the environment with openai 2.x is not here; `make setup` makes it")
    policy_file, errors = folder / "policy.toml", folder / "stderr"
    start = f"import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('tests.client_sdk.{program}', run_name='__main__')"
    with (
        errors.open("w") as stderr,
        subprocess.Popen(
            [python, "-W", "error", "-c", start, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdin
        assert process.stdout
        asking, answers = process.stdin, process.stdout

        def call(url: str, policy: str, *cases: str) -> dict[str, Any]:
            policy_file.write_text(policy)
            asking.write(json.dumps([url, str(policy_file), *cases]) + "\n")
            asking.flush()
            line = answers.readline()
            assert not errors.read_text(), errors.read_text()
            result: dict[str, Any] = json.loads(line)
            assert result.pop("version").startswith(version[0])
            return result

        yield call
        asking.close()
        assert process.wait(60) == 0
        assert not errors.read_text(), errors.read_text()
