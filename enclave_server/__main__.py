"""`enclave-server`: what operators type, and the only place where the parts are put together."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation.errors import AttestationError
from enclave_server import log as logs
from enclave_server.access.cli import cli as keys_cli
from enclave_server.access.gate import Access
from enclave_server.access.store import StoreError
from enclave_server.app import create_app
from enclave_server.as_user import give_up_capabilities
from enclave_server.attest import make_attester
from enclave_server.config_identity import MARK, configured
from enclave_server.doctor_cli import collect, doctor
from enclave_server.engine import Engine, EngineError, Installed, find_engine, keep
from enclave_server.engine_address import Address, parse_address
from enclave_server.engine_cli import cli as engine_cli
from enclave_server.engine_external import ExternalEngine, find_external
from enclave_server.health import health
from enclave_server.identities import Succession
from enclave_server.identity import keep_memory_private, make_identity
from enclave_server.log import log
from enclave_server.model import ModelError, list_files
from enclave_server.model_check import ModelFiles, check_files
from enclave_server.model_cli import cli as model_cli
from enclave_server.model_memory import PackedModel
from enclave_server.policy import policy_text
from enclave_server.prefork import Family, SharedStatus
from enclave_server.provisioning import Secrets
from enclave_server.receipt_log import ReceiptLog
from enclave_server.replays import Replays
from enclave_server.server import listen, make_server
from enclave_server.settings import Settings
from enclave_server.tee import open_tee
from enclave_server.upstream import Upstream

cli = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
cli.add_typer(model_cli, name="model")
cli.add_typer(keys_cli, name="keys")
cli.add_typer(engine_cli, name="engine")
cli.command()(doctor)
cli.command()(collect)
cli.command()(health)

_AS_GIVEN = {"allow_extra_args": True, "ignore_unknown_options": True}

Config = Annotated[Path | None, typer.Option("--config", help="TOML file; ENCLAVE_* variables go before it.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes that serve: the setting of this name.")
]


def main() -> None:
    """The console script. What an operator can mend is one line on standard error, and exit status 1."""
    try:
        cli()
    except (AttestationError, EngineError, ModelError, OSError, StoreError, ValueError) as exc:
        typer.echo(f"enclave-server: {exc}", err=True)
        raise SystemExit(1) from None


@cli.command()
def serve(config: Config = None, workers: Workers = None) -> None:
    """Start the engine, hold the model that it loads against the settings, and serve."""
    content = config.read_bytes() if config is not None else None  # once: its disk may be the host's
    settings = _load(content, workers)
    logs.configure()
    keep_memory_private()
    listeners = listen(settings)
    secrets = Secrets(settings)  # one for all workers
    access = Access(settings, secrets)
    access.prepare()
    status = SharedStatus()
    model = _find_model(settings, secrets, status)
    external = None if settings.engine is None else parse_address(settings.engine)
    installed = _find_engine(settings, external)
    tee = open_tee(settings)
    config_file = configured(settings, content, _origins(content, workers), tee.evidence)
    receipt_log = ReceiptLog.open(settings)
    log_key = receipt_log.key if receipt_log else None
    identities, succession = Succession.of(  # without a name of its own, so that its keys go when it ends
        settings,
        make_identity(settings, engine_version=installed.version, log_key=log_key, config_file=config_file),
        secrets=secrets,
    )
    tee.begin_serving()
    replays = Replays(settings.sealed_remembered)  # one for all workers
    engine = (
        Engine(settings, installed, status, model)
        if external is None
        else ExternalEngine(external, installed.version, status)
    )

    def work(listener: socket.socket) -> int:
        give_up_capabilities()  # what reads requests could become nobody else
        app = create_app(
            settings,
            identities=identities,
            attester=make_attester(settings, identities, tee),
            engine=status,
            upstream=Upstream(engine.address, read_seconds=settings.engine_read_seconds),
            access=access,
            replays=replays,
            receipt_log=receipt_log,
        )
        make_server(app, settings, identities, secrets).run(sockets=[listener])
        return 0

    def keeper() -> int:
        if not isinstance(model, PackedModel):
            secrets.drop()
        return asyncio.run(keep(engine) if receipt_log is None else receipt_log.beside(keep(engine)))

    host, port = listeners[0].getsockname()[:2]
    log.info(
        "gateway listens",
        address=f"{host}:{port}",
        tee=settings.tee,
        statement=identities.current.statement_digest.hex(),
        count=settings.workers,
    )
    family = Family(
        keeper=keeper,
        worker=work,
        listeners=listeners,
        succession=succession,
        drain_seconds=settings.drain_seconds,
    )
    exit_status = family.run()
    if isinstance(model, PackedModel):
        model.close()  # again: its keeper may have been killed
    log.info("gateway stopped")
    raise SystemExit(exit_status)


@cli.command(name="image", context_settings=_AS_GIVEN, add_help_option=False)
def image_commands(context: typer.Context) -> None:
    """Build, measure and boot the VM's image: `enclave-server image --help`."""
    _of_image("image", context.args)


@cli.command(name="refs", context_settings=_AS_GIVEN, add_help_option=False)
def refs_commands(context: typer.Context) -> None:
    """Sign, end and revoke releases: `enclave-server refs --help`."""
    _of_image("refs", context.args)


def _of_image(name: str, arguments: list[str]) -> None:
    """A command of the package `image`, which the gateway's own container can do without."""
    try:
        from image.cli import main as image_main  # noqa: PLC0415 - see above
    except ModuleNotFoundError as exc:
        raise ValueError(
            f"`enclave-server {name}` needs the module {exc.name}: pip install 'attested-inference[server,image]'"
        ) from None
    image_main(name, arguments)


def _find_model(settings: Settings, secrets: Secrets, status: SharedStatus) -> ModelFiles | PackedModel:
    if settings.model_pack is not None:
        return PackedModel(settings, settings.model_pack, secrets, status)
    list_files(settings.model_dir)
    return ModelFiles(settings)


def _find_engine(settings: Settings, external: Address | None) -> Installed:
    if external is None:
        return find_engine(settings.engine_python)
    check_files(settings)  # which it has loaded already
    log.info("waiting for the engine", model=settings.model_name)
    return find_external(external, model=settings.model_name, seconds=settings.engine_start_seconds)


@cli.command()
def policy(config: Config = None, workers: Workers = None) -> None:
    """Print the client policy (TOML) that accepts exactly this configuration."""
    settings = _load(config, workers)
    typer.echo(f"# Made by `enclave-server policy` on {datetime.now(UTC):%Y-%m-%d}.")
    typer.echo(policy_text(settings, open_tee(settings)), nl=False)


@cli.command(name="config")
def show_config(config: Config = None, workers: Workers = None) -> None:
    """Print the effective settings (TOML), where each came from, and their digest."""
    settings = _load(config, workers)
    origins = _origins(config, workers)
    for name, value in settings.effective().items():
        line = f"# {name} is not set" if value is None else f"{name} = {_toml(value)}"
        typer.echo(f"{line}  # {origins[name]}")
    typer.echo(f"# digest: {settings.digest().hex()}")
    if config is not None:
        typer.echo(f"# for the kernel's command line: {MARK}{sha256(config.read_bytes()).hexdigest()}")


def _load(config: Path | bytes | None, workers: int | None) -> Settings:
    return Settings.load(config, **({} if workers is None else {"workers": workers}))


def _origins(config: Path | bytes | None, workers: int | None) -> dict[str, str]:
    return Settings.origins(config) | ({} if workers is None else {"workers": "option"})


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)


if __name__ == "__main__":
    main()
