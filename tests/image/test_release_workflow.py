"""The release workflow, which nothing here can run: its commands are there with these options, and it asks for no more than it needs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.main import get_command

from image.cli import APPS

FILE = Path(__file__).resolve().parents[2] / ".github/workflows/release.yml"
WORKFLOW: dict[Any, Any] = yaml.safe_load(FILE.read_text())
STEPS: list[dict[str, str]] = WORKFLOW["jobs"]["image"]["steps"]
COMMANDS = [
    line
    for step in STEPS
    for line in re.findall(r"(?:enclave_server|\$run) ((?:image|refs) .*)", step["run"])
]


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_there(line: str) -> None:
    """Each with options that it has, so that a renamed one is noticed before a release."""
    group, name, *arguments = shlex.split(re.sub(r"\$\w+", "x", line))
    commands = get_command(APPS[group])
    assert isinstance(commands, typer.core.TyperGroup)
    known = {option for parameter in commands.commands[name].params for option in parameter.opts}
    assert {a for a in arguments if a.startswith("-")} <= known


def test_what_it_runs() -> None:
    """Built, built again, measured, put after the edition before, and signed."""
    assert [" ".join(line.split()[:2]) for line in COMMANDS] == [
        "image build",
        "image repro",
        "image measure",
        "refs add",
        "refs sign-keyless",
    ]


def test_what_it_may() -> None:
    """No rights by default; nobody else's actions; the identity goes to the step that signs, and to no other."""
    assert WORKFLOW["permissions"] == {}
    assert WORKFLOW["jobs"]["image"]["permissions"] == {"contents": "write", "id-token": "write"}
    assert all("uses" not in step for step in STEPS)
    given = [step["name"] for step in STEPS if "ID_TOKEN" in step["run"]]
    assert given == ["Sign as this workflow"]
    assert WORKFLOW[True] == {"push": {"tags": ["v*"]}}  # YAML takes `on` for true
