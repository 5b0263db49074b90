"""`attested collateral fetch`: from a vendor's service into a file that `attested evidence` takes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote as url_quote

import pytest
from typer.testing import CliRunner

from attestation.collateral import IntelCollateral
from attestation.errors import MalformedError
from attestation.evidence import Evidence, TdxEvidence, dump_evidence
from attestation.fetch import Fetcher, Sources
from attestation.simulator.nvidia import SimulatedNvidia
from client_sdk.amd_file import dump_amd, parse_amd
from client_sdk.cli import app
from tests.client_sdk.evidence_files import NOW, Bench, amd, intel
from tests.vendor import Pages, responder, rim_pages, vendor_service

Page = tuple[dict[str, str], bytes]


def pages() -> dict[str, Page]:
    """Intel's answers as a PCCS gives them, and AMD's."""
    ours, theirs = intel().collateral(NOW), amd().collateral(NOW)
    sgx, tdx = "/sgx/certification/v4", "/tdx/certification/v4"
    tcb = f'{{"tcbInfo":{ours.tcb_info},"signature":"{ours.tcb_info_signature.hex()}"}}'
    qe = f'{{"enclaveIdentity":{ours.qe_identity},"signature":"{ours.qe_identity_signature.hex()}"}}'
    signers = url_quote(ours.tcb_info_issuer_chain)
    return {
        f"{sgx}/rootcacrl": ({}, ours.root_ca_crl.hex().encode()),
        f"{sgx}/pckcrl": ({"SGX-PCK-CRL-Issuer-Chain": url_quote(ours.pck_crl_issuer_chain)}, ours.pck_crl),
        f"{tdx}/tcb": ({"TCB-Info-Issuer-Chain": signers}, tcb.encode()),
        f"{tdx}/qe/identity": ({"SGX-Enclave-Identity-Issuer-Chain": signers}, qe.encode()),
        "/vcek/v1/Genoa/cert_chain": ({}, theirs.chain),
        "/vcek/v1/Genoa/crl": ({}, theirs.crl),
        f"/vcek/v1/Genoa/{amd().hwid.hex()}": ({}, theirs.vek),
    }


@pytest.fixture
def service() -> Iterator[str]:
    """A PCCS and a KDS in one, on loopback."""
    answers = pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers, body = answers.get(self.path.partition("?")[0], ({}, b""))
            self.send_response(200 if body else 404)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("kind", "option"), [("tdx", "--pccs"), ("snp_fetched", "--kds")])
def test_what_was_fetched_lets_evidence_be_judged(
    service: str, tmp_path: Path, kind: str, option: str
) -> None:
    """From the evidence alone to an accepting verdict; and again from the cache, with no socket."""
    arguments = getattr(Bench(tmp_path), kind)()
    given = Path(arguments[arguments.index("--collateral") + 1])
    given.unlink()
    fetch = [
        "collateral",
        "fetch",
        arguments[2],
        "-o",
        str(given),
        option,
        service,
        "--cache",
        str(tmp_path / "cache"),
    ]
    result = CliRunner().invoke(app, fetch)
    assert result.exit_code == 0, result.output
    assert "not verified" in result.output
    assert CliRunner().invoke(app, arguments).exit_code == 0
    given.unlink()
    assert CliRunner().invoke(app, [*fetch, "--offline"]).exit_code == 0
    assert given.exists()


def test_without_an_answer_the_question_stays_open(tmp_path: Path) -> None:
    """Offline with nothing remembered, and a folder that cannot be written to: 5. What is no evidence: 2."""
    arguments = Bench(tmp_path).tdx()
    fetch = [
        "collateral",
        "fetch",
        arguments[2],
        "-o",
        str(tmp_path / "out"),
        "--offline",
        "--cache",
        str(tmp_path),
    ]
    result = CliRunner().invoke(app, fetch)
    assert (result.exit_code, "[collateral.fetch]" in result.output) == (5, True)
    (tmp_path / "quote").write_bytes(b"no evidence at all")
    assert CliRunner().invoke(app, fetch).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_said(service: str, tmp_path: Path) -> None:
    """The answer was there, the place for it was not."""
    arguments = Bench(tmp_path).tdx()
    fetch = ["collateral", "fetch", arguments[2], "-o", str(tmp_path / "none" / "out"), "--pccs", service]
    result = CliRunner().invoke(app, fetch)
    assert (result.exit_code, "No such file" in result.output) == (5, True)


def test_amds_file_survives_the_round_trip() -> None:
    """And nothing else is taken for one."""
    good = dump_amd(amd().collateral(NOW))
    assert dump_amd(parse_amd(good)) == good
    fields = json.loads(good)
    for bad in (
        b"[]",
        b"{}",
        json.dumps(fields | {"vek": "xy"}).encode(),
        json.dumps(fields | {"more": ""}).encode(),
    ):
        with pytest.raises(MalformedError):
            parse_amd(bad)


def test_a_folder_for_a_machine_without_a_network(tmp_path: Path) -> None:
    """With `--cache`, what a document's GPUs need is kept beside what its CPU needs, for a gateway that may ask nobody."""
    gpus = SimulatedNvidia.create()
    document = Evidence(
        statement=b"{}", cpu=TdxEvidence(intel().quote(bytes(64))), gpu=gpus.evidence(bytes(32))
    )
    (tmp_path / "evidence.json").write_bytes(dump_evidence(document))
    collateral = gpus.collateral(NOW)
    manifests = {f"/v1{path}": page for path, page in rim_pages(document.gpu, collateral).items()}
    plain: Pages = {path: (200, headers, body) for path, (headers, body) in pages().items()}
    fmspc = json.loads(intel().collateral(NOW).tcb_info)["fmspc"].upper()
    plain[f"/tdx/certification/v4/tcb?fmspc={fmspc}"] = plain["/tdx/certification/v4/tcb"]
    plain["/sgx/certification/v4/pckcrl?ca=platform&encoding=der"] = plain["/sgx/certification/v4/pckcrl"]
    with vendor_service(plain | manifests) as vendor:
        vendor.answer = responder(collateral)
        arguments = ["--pccs", vendor.url, "--nvidia", vendor.url, "--cache", str(tmp_path / "kept")]
        command = ["collateral", "fetch", str(tmp_path / "evidence.json"), "-o", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*command, *arguments])
        assert result.exit_code == 0, result.output
        sources = replace(
            Sources.pccs(vendor.url), nvidia_rim=f"{vendor.url}/v1/rim", nvidia_ocsp=f"{vendor.url}/ocsp"
        )
    with Fetcher(sources=sources, cache=tmp_path / "kept", offline=True) as offline:
        assert len(offline.nvidia(document.gpu).rims) == 2
        assert IntelCollateral.parse((tmp_path / "out").read_bytes()) == offline.intel(
            intel().quote(bytes(64))
        )
