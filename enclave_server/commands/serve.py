"""`enclave-server serve`: the only place where the gateway's parts are put together."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from enclave_server import log as logs
from enclave_server.access.gate import Access
from enclave_server.app import create_app
from enclave_server.as_user import give_up_capabilities
from enclave_server.commands.options import Config, EngineAddress, Workers, load, origins_of
from enclave_server.config_identity import configured
from enclave_server.engine.address import Address, parse_address
from enclave_server.engine.external import ExternalEngine, find_external
from enclave_server.engine.installed import Installed, find_engine
from enclave_server.engine.kept import keep
from enclave_server.engine.supervisor import Engine
from enclave_server.engine.upstream import Upstream
from enclave_server.evidence.attest import make_attester
from enclave_server.evidence.tee import open_tee
from enclave_server.identities import Identities, Succession
from enclave_server.identity import keep_memory_private, make_identity
from enclave_server.log import log
from enclave_server.metrics import check_ports
from enclave_server.model.check import ModelFiles, check_files
from enclave_server.model.manifest import list_files
from enclave_server.model.memory import PackedModel
from enclave_server.prefork import Family, SharedStatus
from enclave_server.provisioning import Secrets
from enclave_server.receipts.log import ReceiptLog
from enclave_server.replays import Replays
from enclave_server.server import listen, make_server
from enclave_server.settings import Settings
from enclave_server.waiting import alive


def serve(config: Config = None, workers: Workers = None, engine: EngineAddress = None) -> None:
    """Start the engine, hold the model that it loads against the settings, and serve."""
    content = config.read_bytes() if config is not None else None  # once: its disk may be the host's
    settings = load(content, workers=workers, engine=engine)
    logs.configure()
    keep_memory_private()
    listeners = listen(settings)
    check_ports(settings.metrics_host, settings.metrics_port, settings.workers)
    secrets = Secrets(settings)  # one for all workers
    access = Access(settings, secrets)
    access.prepare()
    status = SharedStatus()
    model = _find_model(settings, secrets, status)
    external = None if settings.engine is None else parse_address(settings.engine)
    installed = _find_engine(settings, external, listeners[0])
    tee = open_tee(settings)
    origins = origins_of(content, workers=workers, engine=engine)
    config_file = configured(settings, content, origins, tee.evidence)
    receipt_log = ReceiptLog.open(settings)
    log_key = receipt_log.key if receipt_log else None
    identities, succession = Succession.of(  # without a name of its own, so that its keys go when it ends
        settings,
        make_identity(settings, engine_version=installed.version, log_key=log_key, config_file=config_file),
        secrets=secrets,
    )
    tee.begin_serving()
    replays = Replays(settings.sealed_remembered, shared=settings.workers > 1)  # one for all workers
    if external is None:
        kept: Engine | ExternalEngine = Engine(settings, installed, status, model, gateway=os.getpid())
    else:
        kept = ExternalEngine(external, installed.version, status, replicas=settings.engine_replicas)

    def work(listener: socket.socket) -> int:
        give_up_capabilities()  # what reads requests could become nobody else
        app = create_app(
            settings,
            identities=identities,
            attester=make_attester(settings, identities, tee),
            engine=status,
            upstream=Upstream(kept.address, read_seconds=settings.engine_read_seconds),
            access=access,
            replays=replays,
            receipt_log=receipt_log,
        )
        make_server(app, settings, identities, secrets).run(sockets=[listener])
        return 0

    def keeper() -> int:
        if not isinstance(model, PackedModel):
            secrets.drop()
        return asyncio.run(keep(kept) if receipt_log is None else receipt_log.beside(keep(kept)))

    _tell(settings, listeners, identities)
    drain = settings.drain_seconds
    exit_status = Family(
        keeper=keeper, worker=work, listeners=listeners, succession=succession, drain_seconds=drain
    ).run()
    if isinstance(model, PackedModel):
        model.close()  # again: its keeper may have been killed
    log.info("gateway stopped")
    raise SystemExit(exit_status)


def _tell(settings: Settings, listeners: Sequence[socket.socket], identities: Identities) -> None:
    host, port = listeners[0].getsockname()[:2]
    log.info(
        "gateway listens",
        address=f"{host}:{port}",
        tee=settings.tee,
        statement=identities.current.statement_digest.hex(),
        count=settings.workers,
    )


def _find_model(settings: Settings, secrets: Secrets, status: SharedStatus) -> ModelFiles | PackedModel:
    if settings.model_pack is not None:
        return PackedModel(settings, settings.model_pack, secrets, status)
    list_files(settings.model_dir)
    return ModelFiles(settings)


def _find_engine(settings: Settings, external: Address | None, listener: socket.socket) -> Installed:
    if external is None:
        return find_engine(settings.engine_python)
    with alive(listener):
        check_files(settings)  # which it has loaded already
        log.info("waiting for the engine", model=settings.model_name)
        return find_external(
            external,
            model=settings.model_name,
            seconds=settings.engine_start_seconds,
            replicas=settings.engine_replicas,
        )
