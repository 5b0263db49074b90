"""The gateway in front of the mock engine: all of its own work, but no TLS (the load generator speaks none) and no vLLM.

    python -m benchmarks.ours PORT ENGINE_SOCKET FOLDER WORKERS [without-checkpoints|without-memory]

The API key that it demands is written to FOLDER/key.
"""

from __future__ import annotations

import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from enclave_server import log as logs
from enclave_server.access.gate import Access
from enclave_server.access.store import Store
from enclave_server.app import create_app
from enclave_server.engine.upstream import Upstream
from enclave_server.evidence.attest import make_attester
from enclave_server.evidence.tee import open_tee
from enclave_server.identities import Succession
from enclave_server.identity import make_identity
from enclave_server.model.manifest import read_manifest
from enclave_server.prefork import Family, SharedStatus
from enclave_server.replays import Replays
from enclave_server.server import listen, make_server
from enclave_server.settings import Settings


def settings_for(port: int, folder: Path, workers: int, **others: Any) -> Settings:
    """The gateway's own defaults, but for what has to be said, and more requests at once than a key has by default."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    return Settings.load(
        port=port,
        workers=workers,
        model_dir=model,
        model_name="mock",
        model_digest=read_manifest(model).digest().hex(),
        tee="simulated-tdx",
        simulator_dir=folder / "simulator",
        engine_python=Path("/nonexistent"),
        access_database=f"sqlite:///{folder}/access.db",
        key_concurrency=256,
        **others,
    )


class WithoutMemory(Replays):
    """Does all the work of remembering, and takes a request for another one when it comes again."""

    def remember(self, enc: bytes, now: float) -> None:
        super().remember(secrets.token_bytes(len(enc)), now)


def main(port: int, engine_socket: Path, folder: Path, workers: int, other: str = "") -> int:
    logs.configure()
    rare = {"checkpoint_events": 10**6, "checkpoint_seconds": 3600} if other == "without-checkpoints" else {}
    settings = settings_for(port, folder, workers, **rare)
    access = Access(settings)
    access.prepare()
    store = Store(settings.access_database)
    (folder / "key").write_text(store.create("benchmark", tenant="")[1])
    store.close()
    tee = open_tee(settings)
    identities, succession = Succession.of(settings, make_identity(settings, engine_version="0"))
    status = SharedStatus()
    status.unready = None
    remember = WithoutMemory if other == "without-memory" else Replays
    replays = remember(settings.sealed_remembered, shared=workers > 1)

    def work(listener: socket.socket) -> int:
        app = create_app(
            settings,
            identities=identities,
            attester=make_attester(settings, identities, tee),
            engine=status,
            upstream=Upstream(engine_socket, read_seconds=60),
            access=access,
            replays=replays,
        )
        server = make_server(app, settings, identities)
        server.config.ssl_context_factory = None
        server.run(sockets=[listener])
        return 0

    def keep_nothing() -> int:
        signal.pause()
        return 0

    family = Family(
        keeper=keep_nothing,
        worker=work,
        listeners=listen(settings),
        succession=succession,
        drain_seconds=1,
    )
    return family.run()


if __name__ == "__main__":
    port, socket_path, directory, count, *rest = sys.argv[1:]
    sys.exit(main(int(port), Path(socket_path), Path(directory), int(count), *rest))
