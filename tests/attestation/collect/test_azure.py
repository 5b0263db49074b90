"""Azure's evidence, from a real (software) TPM with the paravisor's report in its NV memory, judged as a client judges it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation import vtpm
from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.collect import azure
from attestation.collect.azure import collect_azure, dump_azure
from attestation.errors import UnavailableError, VerificationError
from attestation.simulator.snp import SimulatedSnp
from attestation.simulator.vtpm import SimulatedVtpm, make_hcl_report
from attestation.vtpm import ReportType

NONCE = bytes(range(32))
NEEDED = ("swtpm", "swtpm_setup", "tpm2_quote", "tpm2_createak")
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason="needs swtpm, swtpm-tools and tpm2-tools (apt-get install)"
)


class Tpm:
    """A software TPM with an attestation key where the paravisor has its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        state = folder / "state"
        state.mkdir()
        self._run("swtpm_setup", "--tpm2", "--tpmstate", str(state), "--pcr-banks", "sha256", "--overwrite")
        socket = f"{folder}/sock"
        self.process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--server", f"type=unixio,path={socket}",
             "--ctrl", f"type=unixio,path={socket}.ctrl", "--flags", "startup-clear"],
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not Path(socket).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.environment = {"TPM2TOOLS_TCTI": f"swtpm:path={socket}"}
        key = f"{folder}/ak"
        self.tool("tpm2_createek", "-c", f"{folder}/ek.ctx", "-G", "rsa", "-u", f"{folder}/ek.pub")
        self.tool("tpm2_createak", "-C", f"{folder}/ek.ctx", "-c", f"{key}.ctx", "-G", "rsa", "-g", "sha256",
                  "-s", "rsassa", "-u", f"{key}.pem", "-f", "pem", "-n", f"{key}.name")  # fmt: skip
        for kind in ("-t", "-s", "-l"):
            self.tool("tpm2_flushcontext", kind)
        self.tool("tpm2_evictcontrol", "-C", "o", "-c", f"{key}.ctx", "0x81000003")
        public = load_pem_public_key((folder / "ak.pem").read_bytes())
        assert isinstance(public, rsa.RSAPublicKey)
        self.key = public

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


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tpm]:
    made = Tpm(tmp_path_factory.mktemp("tpm"))
    machine = SimulatedVtpm(SimulatedSnp())
    numbers = made.key.public_numbers()
    n = b64url_encode(numbers.n.to_bytes((numbers.n.bit_length() + 7) // 8))
    ak = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": n}
    made.keep(
        machine.hcl_report({"keys": [ak]}).rstrip(b"\0")
    )  # a software TPM's index has 2048 bytes at most
    yield made
    made.process.terminate()
    made.process.wait(10)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    service.answers["/metadata/THIM/amd/certification"] = (200, {"vcekCert": "", "tcbm": "00"})
    yield service
    service.close()


def test_what_is_collected_is_what_the_verifier_takes(tpm: Tpm, metadata: Metadata) -> None:
    """Hardware report, runtime data, key, quote and PCRs as one chain; the JSON survives the way to a client."""
    sim = SimulatedVtpm(SimulatedSnp())
    evidence = vtpm.parse_evidence(
        dump_azure(collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url))
    )
    now = datetime.now(UTC)
    claims = vtpm.verify(evidence, sim.collateral(now), sim.roots, now, nonce=NONCE)
    assert claims.nonce == NONCE
    assert set(claims.pcrs) == set(range(24))
    assert metadata.asked == [("/metadata/THIM/amd/certification", b"", "true")]
    with pytest.raises(VerificationError, match=Check.VTPM_NONCE):
        vtpm.verify(evidence, sim.collateral(now), sim.roots, now, nonce=bytes(32))


def test_the_vms_certificate_comes_along(tpm: Tpm, metadata: Metadata) -> None:
    """Azure hands out the VCEK, so that AMD need not be asked for it."""
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    metadata.answers["/metadata/THIM/amd/certification"] = (200, {"vcekCert": pem})
    evidence = collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
    assert vtpm.parse_evidence(dump_azure(evidence)).vcek.decode() == pem


def test_a_td_is_quoted_by_the_host(tpm: Tpm, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """On TDX the report in the vTPM is for this machine alone; the metadata service makes a quote of it."""
    report = b"TDREPORT".ljust(1024, b"\1").ljust(1184, b"\0")
    hcl = make_hcl_report(report, SimulatedVtpm(SimulatedSnp()).runtime_data({}), ReportType.TDX)
    run = azure._Tools.run
    monkeypatch.setattr(
        azure._Tools,
        "run",
        lambda self, *command: hcl if command[0] == "tpm2_nvread" else run(self, *command),
    )
    metadata.answers["/acc/tdquote"] = (200, {"quote": b64url_encode(b"a quote")})
    evidence = collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
    assert (evidence.td_quote, evidence.vcek) == (b"a quote", b"")
    assert json.loads(metadata.asked[0][1]) == {"report": b64url_encode(report[:1024])}
    assert json.loads(dump_azure(evidence))["td_quote"] == b64url_encode(b"a quote")


def test_what_can_fail(tpm: Tpm, metadata: Metadata, tmp_path: Path) -> None:
    """No tools, no TPM, no metadata service, a refusal of it: each is named."""

    def refused(**arguments: Any) -> str:
        with pytest.raises(UnavailableError) as caught:
            collect_azure(NONCE, **{"environment": tpm.environment, "metadata": metadata.url, **arguments})
        assert caught.value.check is Check.TEE_COLLECT
        return str(caught.value)

    assert "Install tpm2-tools" in refused(environment={"PATH": str(tmp_path)})
    assert "tpm2_nvread failed" in refused(environment={"TPM2TOOLS_TCTI": f"swtpm:path={tmp_path}/none"})
    assert "does not answer" in refused(metadata="http://127.0.0.1:9")
    metadata.answers.clear()
    assert "status 404" in refused()
    for nonce in (b"", bytes(33)):
        with pytest.raises(ValueError, match="1 to 32"):
            collect_azure(nonce)


def test_pcrs_that_change_meanwhile(tpm: Tpm, metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PCR that is extended between quote and reading makes another attempt, and in the end an error."""
    run, left = azure._Tools.run, [1]

    def extend_first(self: Any, *command: str) -> bytes:
        if command[0] == "tpm2_pcrread" and left[0]:
            left[0] -= 1
            tpm.tool("tpm2_pcrextend", "16:sha256=" + "ab" * 32)
        return run(self, *command)

    monkeypatch.setattr(azure._Tools, "run", extend_first)
    assert collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url).quote
    left[0] = 99
    with pytest.raises(UnavailableError, match="PCRs changed"):
        collect_azure(NONCE, environment=tpm.environment, metadata=metadata.url)
