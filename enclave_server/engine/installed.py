"""Which engine there is: asked of the environment that has it, before anything of it is started."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from enclave_server.mendable import MendableError

_PROBE = (
    "import importlib.util as u, pathlib, runpy; p = pathlib.Path(u.find_spec('vllm').origin).parent; "
    "print(runpy.run_path(str(p / '_version.py'))['__version__'], p, sep='\\n')"
)


class EngineError(MendableError):
    """The engine cannot be run as configured."""


@dataclass(frozen=True, slots=True)
class Installed:
    """The vLLM in the engine's own Python environment."""

    version: str
    source_files: frozenset[str]


def find_engine(python: Path | None) -> Installed:
    """Ask the engine's Python which vLLM it has, without importing it."""
    if python is None or not python.is_file():
        raise EngineError(f"engine_python: there is no {python}")
    asked = subprocess.run(  # noqa: S603 - the operator's own Python
        [python.absolute(), "-I", "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        raise EngineError(
            f"engine_python: {python} has no vLLM ({asked.stderr.strip().rpartition(chr(10))[2]})"
        )
    version, folder = asked.stdout.splitlines()
    return Installed(version, frozenset(path.name for path in Path(folder).rglob("*.py")))
