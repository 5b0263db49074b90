"""What the client loads before it does anything: a command what it needs, and `import client_sdk` next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.main import get_command

from client_sdk.cli import COMMANDS, app

HEAVY = {"cryptography", "httpx", "lxml", "openai", "signxml", "attestation.evidence", "client_sdk.transport"}


def loaded(program: str, *arguments: str) -> set[str]:
    """The modules in memory at the end of a program."""
    told = "import atexit, sys\natexit.register(lambda: print('\\n'.join(sys.modules), file=sys.stderr))\n"
    done = subprocess.run(
        [sys.executable, "-c", told + program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.parametrize(
    ("words", "without"),
    [
        ("--version", HEAVY | {"rich"}),
        ("--help", HEAVY),
        ("policy explain --help", {"httpx", "openai"}),
        ("evidence tdx --help", {"openai", "client_sdk.transport"}),
        ("chat --help", {"openai", "client_sdk.proxy.running"}),
    ],
)
def test_commands_load_their_own(words: str, without: set[str]) -> None:
    """What only other commands need is not loaded for this one."""
    assert loaded("from client_sdk.cli import main; main()", *words.split()) & without == set()


def test_import_is_lean() -> None:
    """Programs that import the package pay for what they use of it, when they use it."""
    assert {
        name for name in loaded("import client_sdk") if name.startswith(("attestation", "client_sdk."))
    } == set()
    assert loaded("from client_sdk import AttestationError, Check, Policy") & {"httpx", "openai"} == set()


@pytest.mark.parametrize("name", [name for commands in COMMANDS.values() for name in commands])
def test_lines_are_the_commands_own(name: str) -> None:
    """The list says of each command what its own help begins with."""
    command = getattr(get_command(app), "commands")[name]  # noqa: B009 - typer exports no type that has it
    assert command.load().help.partition("\n\n")[0] == command.help
