"""An Azure confidential VM without Azure: a software TPM with the paravisor's key and report in it, and the metadata service."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import SimulatedVtpm, jwk
from tests.processes import until

NEEDED = ("swtpm", "swtpm_setup", "tpm2_quote", "tpm2_createak")
needs_tpm = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason="needs swtpm, swtpm-tools and tpm2-tools (apt-get install)"
)


class Tpm:
    """A software TPM. It has no key before `make_key`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = folder / "state"
        state.mkdir()
        self._run("swtpm_setup", "--tpm2", "--tpmstate", str(state), "--pcr-banks", "sha256", "--overwrite")
        place = f"{folder}/sock"
        self.process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={place}",
             "--ctrl", f"type=unixio,path={place}.ctrl", "--flags", "startup-clear"],
        )  # fmt: skip
        until(lambda: _listens(place) and _listens(f"{place}.ctrl"))
        self.environment = {"TPM2TOOLS_TCTI": f"swtpm:path={place}"}

    def make_key(self) -> rsa.RSAPublicKey:
        """An attestation key where the paravisor has its own."""
        folder, key = self.folder, f"{self.folder}/ak"
        self.tool("tpm2_createek", "-c", f"{folder}/ek.ctx", "-G", "rsa", "-u", f"{folder}/ek.pub")
        self.tool("tpm2_createak", "-C", f"{folder}/ek.ctx", "-c", f"{key}.ctx", "-G", "rsa", "-g", "sha256",
                  "-s", "rsassa", "-u", f"{key}.pem", "-f", "pem", "-n", f"{key}.name")  # fmt: skip
        for kind in ("-t", "-s", "-l"):
            self.tool("tpm2_flushcontext", kind)
        self.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{key}.ctx", "0x81000003")
        public = load_pem_public_key((folder / "ak.pem").read_bytes())
        assert isinstance(public, rsa.RSAPublicKey)
        return public

    def tool(self, *command: str) -> None:
        self._run(*command, environment=self.environment)

    def keep(self, report: bytes) -> None:
        """The paravisor's report, at its index."""
        (self.folder / "hcl").write_bytes(report)
        self.tool("tpm2_nvdefine", "-C", "o", "-s", str(len(report)), "0x01400001")
        self.tool("tpm2_nvwrite", "-C", "o", "-i", f"{self.folder}/hcl", "0x01400001")

    @staticmethod
    def _run(*command: str, environment: dict[str, str] | None = None) -> None:
        done = subprocess.run(
            command, env={**os.environ, **(environment or {})}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()


def _listens(place: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return not probe.connect_ex(place)


class Metadata:
    """Azure's metadata service, as far as it is asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, bytes, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.path, body, self.headers["Metadata"]))
                status, answer = outer.answers.get(self.path, (404, {}))
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET  # noqa: N815 - the name that http.server looks for

            def log_message(self, *_: Any) -> None:
                """Nothing on the console."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def running_tpm(folder: Path) -> Iterator[Tpm]:
    """A TPM as it leaves the factory."""
    made = Tpm(folder)
    try:
        yield made
    finally:
        made.process.terminate()
        made.process.wait(60)


@contextmanager
def azure_tpm(folder: Path) -> Iterator[Tpm]:
    """A TPM that holds the report of a simulated SEV-SNP machine about its own key."""
    with running_tpm(folder) as made:
        report = SimulatedVtpm(SimulatedSnp()).hcl_report({"keys": [jwk(made.make_key())]})
        made.keep(report.rstrip(b"\0"))  # a software TPM's index has 2048 bytes at most
        yield made


@contextmanager
def azure_metadata() -> Iterator[Metadata]:
    """The metadata service, which knows the VM's certificate to be none."""
    service = Metadata()
    service.answers["/metadata/THIM/amd/certification"] = (200, {"vcekCert": "", "tcbm": "00"})
    try:
        yield service
    finally:
        service.close()
