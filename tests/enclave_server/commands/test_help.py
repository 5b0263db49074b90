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
