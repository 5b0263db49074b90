"""Servers for tests: the fake engine, and the real gateway in a thread, with TLS.

with FakeEngine(tmp_path / "engine.sock") as engine, live_gateway(tmp_path, engine=engine) as gateway:
    ...  # gateway.url, gateway.policy_text, engine.requests, engine.behaviour.die_after = 3, gateway.restart()
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from enclave_server.app import App, create_app
from enclave_server.choices import TeeKind
from enclave_server.commands.policy import policy_text
from enclave_server.engine.upstream import Upstream
from enclave_server.evidence.attest import Attester, make_attester
from enclave_server.evidence.tee import open_tee
from enclave_server.identities import Identities, Succession
from enclave_server.identity import Identity, make_identity
from enclave_server.model.manifest import read_manifest
from enclave_server.receipts.log import ReceiptLog
from enclave_server.server import Server, make_server
from enclave_server.settings import Settings
from tests import kept_keys
from tests.fake_engine import MODEL, VERSION, Behaviour, FakeEngine, Seen, _Thread

__all__ = [
    "MODEL",
    "VERSION",
    "Behaviour",
    "FakeEngine",
    "LiveGateway",
    "Logging",
    "Seen",
    "Wrap",
    "_Thread",
    "free_port",
    "gateway_settings",
    "live_gateway",
]

Wrap = Callable[[App], App]

_FIRST_PORT = 10240


class Logging:
    """The writer of a log of receipts, in a thread, as the engine's keeper is in a process."""

    def __init__(self, log: ReceiptLog) -> None:
        self.log, self._thread, self._writing = log, _Thread(), log.writing()
        self._thread.run(self._writing.__aenter__())

    @classmethod
    def of(cls, settings: Settings) -> Logging | None:
        log = ReceiptLog.open(settings)
        return cls(log) if log else None

    def close(self) -> None:
        self._thread.run(self._writing.__aexit__(None, None, None))
        self._thread.close()
        self.log.close()


class LiveGateway:
    """The real gateway under uvicorn with TLS, in a thread. `restart()` gives it new keys on the same port."""

    def __init__(self, settings: Settings, engine: FakeEngine, wrap: Wrap | None) -> None:
        self.settings, self.engine, self._wrap = settings, engine, wrap
        self.tee = open_tee(settings)
        self.policy_text = policy_text(settings, self.tee)
        self.identities: Identities
        self.ahead = 0.0  # seconds by which identities end earlier
        self.attester: Attester
        self.server: Server

    @property
    def origin(self) -> str:
        return f"https://127.0.0.1:{self.settings.port}"

    @property
    def identity(self) -> Identity:
        """The current one."""
        return self.identities.current

    @property
    def url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.origin}/v1"

    def start(self) -> None:
        settings = self.settings
        self._log = Logging.of(settings)
        log = self._log.log if self._log else None
        identity = make_identity(settings, engine_version=VERSION, log_key=log.key if log else None)
        self.identities, _ = Succession.of(settings, identity, clock=lambda: time.time() + self.ahead)
        self.attester = make_attester(settings, self.identities, self.tee)
        self.engine.unready = None
        app = create_app(
            settings,
            identities=self.identities,
            attester=self.attester,
            engine=self.engine,
            upstream=Upstream(self.engine.socket, read_seconds=settings.engine_read_seconds),
            receipt_log=log,
        )
        self.server = make_server(self._wrap(app) if self._wrap else app, settings, self.identities)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 120
        while not (self.server.started and self.attester.ready):
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError("the gateway did not start")
            time.sleep(0.01)

    def succeed(self) -> None:
        """As the parent does: another identity takes over, and the one before goes on until it ends."""
        identities = self.identities
        identities.add(identities.current.successor(timedelta(days=8), datetime.now(UTC)))
        identities.take_over()

    def stop(self) -> None:
        self.server.end()
        self._thread.join(60)
        if self._log is not None:
            self._log.close()

    def restart(self) -> None:
        """Another boot: the same port and policy, new keys, a new statement."""
        self.stop()
        self.start()


def gateway_settings(tmp_path: Path, *, tee: str = "simulated-tdx", **changes: Any) -> Settings:
    """Settings for a made-up model of one small file."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    if tee == "simulated-snp":
        kept_keys.put(tmp_path / "simulator")
    (model / "config.json").write_text('{"model_type":"fake"}')
    values: dict[str, Any] = {
        "port": free_port(),
        "model_dir": model,
        "model_name": MODEL,
        "model_digest": read_manifest(model).digest().hex(),
        "tee": TeeKind(tee),
        "simulator_dir": tmp_path / "simulator",
        "engine_python": Path("/nonexistent/python"),
        "drain_seconds": 2,
        "access": "open",
        "access_database": f"sqlite:///{tmp_path}/access.db",
        "evidence_per_second": 50,
        "evidence_burst": 200,
    }
    return Settings.load(**{**values, **changes})


@contextmanager
def live_gateway(
    tmp_path: Path,
    *,
    engine: FakeEngine,
    wrap: Wrap | None = None,
    tee: str = "simulated-tdx",
    **changes: Any,
) -> Iterator[LiveGateway]:
    """The gateway on a loopback port. `wrap` may put ASGI middleware around it; `changes` are settings."""
    gateway = LiveGateway(gateway_settings(tmp_path, tee=tee, **changes), engine, wrap)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


def free_port(count: int = 1) -> int:
    """The first of so many free ports in a row, which nobody else is given.

    A server takes it seconds later. So each process of a run gives those of its own range in turn, and all are below what the
    kernel hands out by itself: a port of these could be the near end of somebody's connection by then.
    """
    while True:
        ports = tuple(next(_ports) for _ in range(count))
        with ExitStack() as probes, suppress(OSError):
            for port in ports:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            if ports[-1] - ports[0] == count - 1:
                return ports[0]


def _in_turn() -> Iterator[int]:
    """From anywhere in this process's share: another run may go on beside this one."""
    kernels = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    last = kernels if kernels >= 2 * _FIRST_PORT else 60_000  # where the kernel hands out all there are
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (last - _FIRST_PORT) // processes
    ports = range(_FIRST_PORT + number * share, _FIRST_PORT + (number + 1) * share)
    start = random.randrange(share)
    return itertools.cycle([*ports[start:], *ports[:start]])


_ports = _in_turn()
