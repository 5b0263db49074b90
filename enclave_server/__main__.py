"""`enclave-server`: what operators type, and the only place where the parts are put together."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from enclave_server import log as logs
from enclave_server.access.cli import cli as keys_cli
from enclave_server.access.gate import Access
from enclave_server.access.store import StoreError
from enclave_server.app import create_app
from enclave_server.attest import Attester, TokenBucket
from enclave_server.engine import Engine, EngineError, find_engine
from enclave_server.identity import keep_memory_private, make_identity
from enclave_server.log import log
from enclave_server.model import ModelError, check_model, read_manifest
from enclave_server.policy import policy_text
from enclave_server.server import listen, make_server
from enclave_server.settings import Settings
from enclave_server.tee import open_tee
from enclave_server.upstream import Upstream

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
model_cli = typer.Typer(no_args_is_help=True, help="The model's files.")
cli.add_typer(model_cli, name="model")
cli.add_typer(keys_cli, name="keys")

Config = Annotated[Path | None, typer.Option("--config", help="TOML file; ENCLAVE_* variables go before it.")]


def main() -> None:
    """The console script. What an operator can mend is one line on standard error, and exit status 1."""
    try:
        cli()
    except (EngineError, ModelError, NotImplementedError, OSError, StoreError, ValueError) as exc:
        typer.echo(f"enclave-server: {exc}", err=True)
        raise SystemExit(1) from None


@cli.command()
def serve(config: Config = None) -> None:
    """Check the model, start the engine, and serve."""
    settings = Settings.load(config)
    logs.configure()
    keep_memory_private()
    listener = listen(settings)
    access = Access(settings)
    access.prepare()
    log.info("model check starts", model=settings.model_name)
    manifest = check_model(settings.model_dir, settings.model_digest)
    log.info("model checked", model_digest=settings.model_digest, files=len(manifest.files))
    installed = find_engine(settings.engine_python)
    tee = open_tee(settings)
    identity = make_identity(settings, engine_version=installed.version)
    bucket = TokenBucket(settings.evidence_per_second, settings.evidence_burst)
    engine = Engine(settings, installed)
    app = create_app(
        settings,
        identity=identity,
        attester=Attester(
            identity.statement_bytes, tee, bucket, renew_seconds=settings.evidence_renew_seconds
        ),
        engine=engine,
        upstream=Upstream(engine.socket, read_seconds=settings.engine_read_seconds),
        access=access,
    )
    server = make_server(app, settings, identity)

    def stop() -> None:
        server.should_exit = True

    engine.on_give_up = stop
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again when it has shut down
        signal.signal(number, lambda *_: None)
    host, port = listener.getsockname()[:2]
    log.info(
        "gateway listens",
        address=f"{host}:{port}",
        tee=settings.tee,
        statement=identity.statement_digest.hex(),
    )
    server.run(sockets=[listener])
    log.info("gateway stopped")
    if engine.gave_up:
        raise SystemExit(1)


@cli.command()
def policy(config: Config = None) -> None:
    """Print the client policy (TOML) that accepts exactly this configuration."""
    settings = Settings.load(config)
    typer.echo(f"# Made by `enclave-server policy` on {datetime.now(UTC):%Y-%m-%d}.")
    typer.echo(policy_text(settings, open_tee(settings)), nl=False)


@cli.command(name="config")
def show_config(config: Config = None) -> None:
    """Print the effective settings (TOML), where each came from, and their digest."""
    settings, origins = Settings.load(config), Settings.origins(config)
    for name, value in settings.effective().items():
        line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        typer.echo(f"{line}  # {origins[name]}")
    typer.echo(f"# digest: {settings.digest().hex()}")


@model_cli.command(name="digest")
def model_digest(
    directory: Path, files: Annotated[bool, typer.Option(help="Print the manifest too.")] = False
) -> None:
    """Print the model digest of a directory, for `model_digest` in the settings."""
    manifest = read_manifest(directory)
    if files:
        for file in manifest.files:
            typer.echo(f"{file.sha256}  {file.size:>12}  {file.path}")
    typer.echo(manifest.digest().hex())


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


if __name__ == "__main__":
    main()
