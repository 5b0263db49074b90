"""What `enclave-server` says of itself."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from enclave_server.__main__ import cli


@pytest.mark.parametrize("group", ["keys", "model", "engine", "image", "refs"])
def test_a_group_offers_no_completion(group: str) -> None:
    """No shell could use one of a part of a command."""
    told = CliRunner().invoke(cli, [group, "--help"]).output
    assert f"Usage: enclave-server {group} " in told
    assert "completion" not in told


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("keys create", "NAME"),
        ("keys usage", "[KEY_ID]"),
        ("model digest", "DIRECTORY"),
        ("refs add", "REFS NEW"),
        ("image repro", "OUT"),
        ("collect", "KIND"),
    ],
)
def test_arguments_are_written_as_manuals_do(command: str, arguments: str) -> None:
    """In capitals, and in brackets where they may be left out."""
    told = CliRunner().invoke(cli, [*command.split(), "--help"]).output
    assert f"Usage: enclave-server {command} [OPTIONS] {arguments} " in told
