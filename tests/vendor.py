"""The vendors' services on loopback, in their shapes: Intel's PCS, AMD's KDS, NVIDIA's RIM service and OCSP responder.

with vendor_service(intel_pages(sim.collateral(now))) as vendor:
    ...  # Fetcher(sources=vendor.sources); vendor.asked; vendor.spoil = [(503, {}, b"")]; vendor.pages = {}
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote as url_quote

from cryptography.x509 import ocsp

from attestation.collateral import IntelCollateral
from attestation.fetch import Sources
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.needs import needed_rims
from attestation.nvidia.rim import load_rim
from attestation.simulator.snp import SimulatedSnp

#: One answer: status, headers, body; or a function that writes to the connection itself.
Reply = tuple[int, dict[str, str], bytes] | Callable[[BaseHTTPRequestHandler], None]
Pages = dict[str, Reply]


@dataclass
class Vendor:
    """`pages` are the answers; `spoil` comes first, one entry a request."""

    pages: Pages
    url: str = ""
    asked: list[str] = field(default_factory=list)
    spoil: list[Reply] = field(default_factory=list)
    answer: Callable[[bytes], bytes] = lambda _: b""  # to what is posted

    @property
    def sources(self) -> Sources:
        return Sources(
            intel_tdx=f"{self.url}/tdx",
            intel_sgx=f"{self.url}/sgx",
            intel_root_crl=f"{self.url}/root.der",
            amd=self.url,
            nvidia_rim=f"{self.url}/rim",
            nvidia_ocsp=f"{self.url}/ocsp",
        )


@contextmanager
def vendor_service(pages: Pages) -> Iterator[Vendor]:
    """A vendor that answers rightly, until a test spoils it."""
    service = Vendor(pages)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(service.pages.get(self.path, (404, {}, b"unknown")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/ocsp-request"
            self._reply((200, {}, service.answer(body)))

        def _reply(self, reply: Reply) -> None:
            service.asked.append(self.path)
            reply = service.spoil.pop(0) if service.spoil else reply
            if callable(reply):
                self.close_connection = True
                reply(self)
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    service.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def intel_pages(intel: IntelCollateral) -> Pages:
    """PCS, for the platform of this collateral."""
    return {
        "/root.der": (200, {}, intel.root_ca_crl),
        "/sgx/pckcrl?ca=platform&encoding=der": (
            200, _chain("SGX-PCK-CRL-Issuer-Chain", intel.pck_crl_issuer_chain), intel.pck_crl,
        ),
        f"/tdx/tcb?fmspc={json.loads(intel.tcb_info)['fmspc'].upper()}": (
            200,
            _chain("TCB-Info-Issuer-Chain", intel.tcb_info_issuer_chain),
            _signed("tcbInfo", intel.tcb_info, intel.tcb_info_signature),
        ),
        "/tdx/qe/identity": (
            200,
            _chain("SGX-Enclave-Identity-Issuer-Chain", intel.qe_identity_issuer_chain),
            _signed("enclaveIdentity", intel.qe_identity, intel.qe_identity_signature),
        ),
    }  # fmt: skip


def amd_pages(sim: SimulatedSnp, now: Any) -> Pages:
    """KDS, for this Genoa machine."""
    amd, tcb = sim.collateral(now), sim.tcb
    levels = f"blSPL={tcb.bootloader:02}&teeSPL={tcb.tee:02}&snpSPL={tcb.snp:02}&ucodeSPL={tcb.microcode:02}"
    return {
        f"/vcek/v1/Genoa/{sim.hwid.hex()}?{levels}": (200, {}, amd.vek),
        "/vcek/v1/Genoa/cert_chain": (200, {}, amd.chain),
        "/vcek/v1/Genoa/crl": (200, {}, amd.crl),
    }


def rim_pages(evidence: bytes, collateral: NvidiaCollateral) -> Pages:
    """The RIM service, for the devices of this list."""
    by_version = {load_rim(rim).version.replace(".", "").upper(): rim for rim in collateral.rims}
    return {
        f"/rim/{name}": (200, {}, rim_answer(by_version[name.rpartition("_")[2].replace(".", "").upper()]))
        for name in needed_rims(evidence)
    }


def rim_answer(rim: bytes) -> bytes:
    return json.dumps({"id": "simulated", "rim": b64encode(rim).decode(), "sha256": ""}).encode()


def responder(collateral: NvidiaCollateral) -> Callable[[bytes], bytes]:
    """OCSP answers of this collateral, found by the certificate that a request names."""
    answers = {}
    for der in collateral.ocsp:
        for single in ocsp.load_der_ocsp_response(der).responses:
            answers[single.serial_number, single.issuer_name_hash] = der

    def answer(request: bytes) -> bytes:
        asked = ocsp.load_der_ocsp_request(request)
        return answers[asked.serial_number, asked.issuer_name_hash]

    return answer


def _signed(name: str, text: str, signature: bytes) -> bytes:
    return f'{{"{name}":{text},"signature":"{signature.hex()}"}}'.encode()


def _chain(name: str, pem: str) -> dict[str, str]:
    return {name: url_quote(pem)}
