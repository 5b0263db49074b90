"""The gateway's container: built twice from nothing with the same id, started as a runtime would, and accepted by a client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.caller import untrusting
from tests.processes import until
from tests.served import model_settings
from tests.servers import free_port

ROOT = Path(__file__).resolve().parent.parent
TOOL = [sys.executable, "-m", "tools.container"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("buildah") or not shutil.which("mmdebstrap"),
        reason="root, buildah and mmdebstrap are needed",
    ),
    pytest.mark.skipif(
        not list(ROOT.glob("build/wheels/attested_inference-*.whl")), reason="no wheels: `make wheels`"
    ),
]


class Engine(BaseHTTPRequestHandler):
    """As much of an engine as a gateway asks for before it is ready."""

    def do_GET(self) -> None:
        body = b'{"version": "1.2.3", "data": [{"id": "small"}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_twice_the_same_and_accepted(tmp_path: Path, engine: int) -> None:
    """Two builds have one id; in a read-only root, without a shell or a right, it serves, and `attested verify` says yes."""
    built = subprocess.run(
        [*TOOL, "repro", "--target", "gateway"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    ids = built.stdout.split()
    assert built.returncode == 0, ids
    assert ids[0] == ids[1]

    model, state, port = tmp_path / "models" / "small", tmp_path / "state", free_port()
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    state.mkdir()
    digest = model_settings(model, "small")["model_digest"]
    config = tmp_path / "enclave.toml"
    config.write_text(
        f'port = {port}\nmodel_dir = "/models/small"\nmodel_name = "small"\nmodel_digest = "{digest}"\n'
        f'tee = "simulated-tdx"\nsimulator_dir = "/var/lib/enclave/simulator"\nengine = "http://127.0.0.1:{engine}"\n'
        'runtime_dir = "/run/enclave"\naccess_database = "sqlite:////var/lib/enclave/access.db"\n'
    )
    places = ["--image", ids[0], "--config", config, "--models", tmp_path / "models", "--state", state]
    run = [*TOOL, "run", *map(str, places)]
    with subprocess.Popen(
        run, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as gateway:
        try:
            until(lambda: ready(port), 60)
            inside = ["--", "policy", "--config", "/etc/enclave/enclave.toml"]
            policy = tmp_path / "policy.toml"
            policy.write_text(
                subprocess.run(
                    [*run, *inside], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
                ).stdout
            )
            verify = [sys.executable, "-m", "client_sdk.cli", "verify", f"https://127.0.0.1:{port}"]
            subprocess.run([*verify, "--policy", str(policy)], cwd=ROOT, check=True)
            health = ["--", "health", "--ready", "--config", "/etc/enclave/enclave.toml"]
            subprocess.run([*run, *health], cwd=ROOT, check=True)
        finally:
            gateway.terminate()
            assert gateway.wait(60) == 0


def ready(port: int) -> bool:
    try:
        url = f"https://127.0.0.1:{port}/readyz"
        return httpx.get(url, verify=untrusting(), trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
