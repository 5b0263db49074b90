"""What a command of `enclave-server` loads before it does anything: not the gateway, unless it is the gateway."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import typer

from enclave_server.__main__ import COMMANDS

GATEWAY = {"enclave_server.app", "enclave_server.commands.serve", "fastapi", "sqlalchemy", "uvicorn"}
CLIENTS = {"aiohttp", "httpx", "openai"}


def loaded(*arguments: str) -> set[str]:
    """The modules that a run of `enclave-server` had in memory at its end."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr))\n"
        "from enclave_server.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], GATEWAY | CLIENTS | {"pydantic", "cryptography"}),
        (["health", "--help"], GATEWAY | CLIENTS | {"attestation.evidence", "lxml"}),
        (["config", "--help"], GATEWAY | CLIENTS),
        (["model", "--help"], GATEWAY | CLIENTS | {"attestation.evidence"}),
        (["keys", "--help"], GATEWAY - {"sqlalchemy"} | {"alembic"}),
        (["serve", "--help"], CLIENTS - {"httpx"} | {"alembic", "limits", "sqlalchemy"}),  # it asks vendors
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_not_loaded(arguments: list[str], without: set[str]) -> None:
    """A health check that runs every few seconds, and whoever types, wait for nothing that only `serve` needs."""
    assert loaded(*arguments) & without == set()


def test_package_imports_nothing() -> None:
    """Whoever imports one module of the gateway gets that one, and not all of it."""
    program = "import sys, enclave_server; print([name for name in sys.modules if name.startswith('enclave_server.')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_is_there(name: str) -> None:
    """What the list names can be imported, and is a command or a group of them."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(module), attribute)
    assert isinstance(found, typer.Typer) or callable(found)
