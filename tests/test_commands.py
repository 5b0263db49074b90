"""What README and docs have people type: every command of `enclave-server` is there and takes it, and so are those in the text."""

from __future__ import annotations

import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from enclave_server.__main__ import COMMANDS
from image.cli import APPS
from tests.client_sdk.test_cli import commands as attested_commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:enclave-server|attested) [^`\n]+)`")
#: What stands for a value of the reader's.
VALUES = {"HEX": "00ff", "…": "", "key_…": "key_00", "[key_…]": "key_00"}


@cache
def commands() -> dict[str, Any]:
    """Every command of `enclave-server` by the words that call it."""
    found: dict[str, Any] = {}
    for name, (home, _) in COMMANDS.items():
        module, _, attribute = home.partition(":")
        app = APPS[name] if home.startswith("image.") else getattr(import_module(module), attribute)
        if not isinstance(app, typer.Typer):
            function, app = app, typer.Typer()
            app.command()(function)
        command: Any = get_command(app)
        below = getattr(command, "commands", None)
        found |= {f"{name} {n}": c for n, c in below.items()} if below else {name: command}
    return found


def typed(page: str) -> list[str]:
    """The command lines of `enclave-server` in the blocks of a page, whole, without prompts and remarks."""
    blocks = (block.replace("\\\n", " ") for block in BLOCK.findall(page))
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    lines = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines]
    found = [re.split(r"\s+#\s|\s>\s", line)[0] for line in lines if line.startswith("enclave-server ")]
    or_else = [m[1] for line in lines if (m := re.search(r"# (?:or: )?(enclave-server (?!: ).*)$", line))]
    return [*found, *or_else]


def words_of(line: str) -> list[str]:
    """As a shell has them, with something in the place of what the reader fills in; what may be left out is there."""
    words = shlex.split(re.sub(r"\[(?!key_)([^\]]+)\]", r"\1", line))[1:]
    return [word for w in words if (word := VALUES.get(w, w))]


def called(known: dict[str, Any], words: list[str]) -> str | None:
    return next((name for n in (2, 1) if (name := " ".join(words[:n])) in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_operators_command_lines_are_commands(page: Path) -> None:
    """Each is taken as it stands, every argument and option of it."""
    for line in typed(page.read_text()):
        words = words_of(line)
        name = called(commands(), words)
        assert name is not None, line
        try:
            commands()[name].make_context(name, words[len(name.split()) :])
        except Exception as exc:
            raise AssertionError(f"{line}: {exc}") from exc


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_text_are_commands(page: Path) -> None:
    """A command that a sentence names is there, with the options that it names."""
    for line in INLINE.findall(BLOCK.sub("", page.read_text())):
        program, *words = line.replace("'", "").replace('"', "").split()
        known = commands() if program == "enclave-server" else attested_commands()
        name = called(known, words)
        families = {n.split()[0] for n in known}
        if name is None:
            assert words[0] in families | {"--install-completion"}, line
            assert len(words) == 1, line
            continue
        options = {option for p in known[name].params for option in (*p.opts, *p.secondary_opts)}
        asked = {w.strip("[]") for w in words if w.strip("[]").startswith("-")}
        assert asked <= options, line


def test_there_are_some() -> None:
    """The two tests above look at something."""
    assert len(typed("".join(page.read_text() for page in PAGES))) > 35
    assert {"refs sign", "image build", "keys create", "serve"} <= commands().keys()
