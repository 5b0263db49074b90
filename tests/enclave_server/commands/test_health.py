"""`enclave-server health`, against real gateways."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import typer

from enclave_server.commands import health as module
from enclave_server.commands.health import health
from tests.enclave_server.fake_settings import fake_settings
from tests.served import served


def test_alive_and_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is quiet success while the gateway lives, and status 1 once it is gone."""
    monkeypatch.setattr(module, "SECONDS", 60)
    values = fake_settings(tmp_path)
    with served(tmp_path / "gateway", host="0.0.0.0", **values) as gateway:  # noqa: S104 - what a container says
        health(gateway.config)
        health(gateway.config, ready=True)
        assert gateway.terminate() == 0
        with pytest.raises(typer.Exit):
            health(gateway.config)
    assert "no answer from 127.0.0.1" in capsys.readouterr().err


def test_what_speaks_no_tls_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else on the port, which answers nothing, is no gateway."""
    monkeypatch.setattr(module, "SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        config = tmp_path / "enclave.toml"
        config.write_text(
            f'port = {other.getsockname()[1]}\ntee = "simulated-tdx"\nmodel_dir = "x"\nmodel_name = "x"\n'
            f'model_digest = "{"00" * 32}"\nengine = "http://127.0.0.1:1"\n'
        )
        with pytest.raises(typer.Exit):
            health(config)
