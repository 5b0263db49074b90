"""Documents as other providers publish them, made from simulated machines, and a real TLS server that serves them."""

from __future__ import annotations

import gzip
import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256, sha384, sha512
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from attestation.measure.dstack import EV_DSTACK, encode_event
from attestation.nvidia.devices import parse_list
from attestation.simulator import pki
from attestation.simulator.tdx_quote import DEFAULT_TD
from client_sdk.foreign.tinfoil import (
    AMD_CRL,
    AMD_VCEK,
    CRYPTO_MATERIAL,
    DEVICE_EVIDENCE,
    GPU_EVIDENCE,
    KEY_HPKE,
    KEY_SPKI_SHA256,
    REPORT_DATA,
    SNP_REPORT,
    V3_FORMAT,
)
from tests.client_sdk.evidence_files import NOW, amazon, amd, intel, nvidia

SNP_V2 = "https://tinfoil.sh/predicate/sev-snp-guest/v2"
TDX_V2 = "https://tinfoil.sh/predicate/tdx-guest/v2"
HPKE = bytes(range(1, 33))
ADDRESS = bytes(range(20))
COMPOSE = '{"docker_compose_file":"services: {}"}'
Extensions = Sequence[tuple[x509.ExtensionType, bool]]


def identity(extensions: Extensions = (), key: ec.EllipticCurvePrivateKey | None = None) -> pki.Signer:
    """A key and its certificate, as a TLS server has them."""
    day = timedelta(days=1)
    return pki.issue(
        pki.name("server"),
        key or pki.p256_key(),
        not_before=NOW - day,
        not_after=NOW + day,
        ca=None,
        extensions=extensions,
    )


SERVER = identity()


def spki(signer: pki.Signer = SERVER) -> bytes:
    return signer.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def tinfoil_v2(
    signer: pki.Signer = SERVER, *, tdx: bool = False, pack: Callable[[bytes], bytes] = gzip.compress
) -> bytes:
    data = sha256(spki(signer)).digest() + HPKE
    report = intel().quote(data) if tdx else amd().report(data)
    return wrap_v2(report, tdx=tdx, pack=pack)


def wrap_v2(report: bytes, *, tdx: bool, pack: Callable[[bytes], bytes] = gzip.compress) -> bytes:
    body = b64encode(pack(report)).decode()
    return json.dumps({"format": TDX_V2 if tdx else SNP_V2, "body": body}).encode()


def tinfoil_v3(
    nonce: bytes,
    signer: pki.Signer = SERVER,
    change: Callable[[dict[str, Any]], None] = lambda d: None,
    gpu_nonce: bytes | None = None,
) -> bytes:
    """`change` acts when everything is signed."""
    tls = {"id": "tls", "format": KEY_SPKI_SHA256, "data": sha256(spki(signer)).hexdigest()}
    hpke = {"id": "hpke", "format": KEY_HPKE, "data": HPKE.hex()}
    gpus = [
        {"id": f"gpu{i}", "kind": "gpu", "vendor": "nvidia", "format": GPU_EVIDENCE, "evidence": item}
        for i, item in enumerate(json.loads(nvidia().evidence(gpu_nonce or nonce)))
    ]
    crypto = json.dumps({"format": CRYPTO_MATERIAL, "items": [tls, hpke]}).encode()
    devices = json.dumps({"format": DEVICE_EVIDENCE, "items": gpus}).encode()
    digests = [sha256(section).digest() for section in (crypto, devices)]
    data = sha256(REPORT_DATA.encode() + nonce + b"".join(digests)).digest() + bytes(32)
    given = amd().collateral(NOW)
    document = {
        "format": V3_FORMAT,
        "challenge": {
            "nonce": nonce.hex(),
            "report_data": data.hex(),
            "report_data_algorithm": REPORT_DATA,
        },
        "cpu_evidence": {
            "format": SNP_REPORT,
            "report_base64": b64encode(amd().report(data)).decode(),
            "endorsed": {
                "crypto_material_hash": digests[0].hex(),
                "device_evidence_hash": digests[1].hex(),
            },
        },
        "crypto_material": b64encode(crypto).decode(),
        "device_evidence": b64encode(devices).decode(),
        "collateral": [
            {
                "id": "vcek",
                "role": "endorsement",
                "format": AMD_VCEK,
                "data": {
                    "vcek_der_base64": b64encode(given.vek).decode(),
                    "cert_chain_pem": given.chain.decode(),
                },
            },
            {
                "id": "crl",
                "role": "endorsement",
                "format": AMD_CRL,
                "data": {"crl_der_base64": b64encode(given.crl).decode()},
            },
        ],
    }
    change(document)
    return json.dumps(document).encode()


def dstack_log(compose: str = COMPOSE) -> tuple[list[dict[str, Any]], bytes]:
    """A log of dstack's own events, and the RTMR3 that they lead to."""
    events, rtmr3 = [], bytes(48)
    for name, payload in (
        ("app-id", ADDRESS),
        ("compose-hash", sha256(compose.encode()).digest()),
        ("system-ready", b""),
    ):
        digest = sha384(encode_event(name, payload)).digest()
        rtmr3 = sha384(rtmr3 + digest).digest()
        events.append(
            {
                "imr": 3,
                "event_type": EV_DSTACK,
                "digest": digest.hex(),
                "event": name,
                "event_payload": payload.hex(),
            }
        )
    return events, rtmr3


def dstack(
    nonce: bytes,
    signer: pki.Signer | None = None,
    change: Callable[[dict[str, Any]], None] = lambda d: None,
    address: bytes = ADDRESS,
) -> dict[str, Any]:
    """`signer` binds its TLS key; `change` acts when everything is signed."""
    fingerprint = sha256(spki(signer)).digest() if signer else None
    whose = sha256(address + fingerprint).digest() if fingerprint else address.ljust(32, b"\0")
    events, rtmr3 = dstack_log()
    quote = intel().quote(whose + nonce, td=replace(DEFAULT_TD, rtmr3=rtmr3))
    report = {
        "signing_address": "0x" + address.hex(),
        "signing_algo": "ecdsa",
        "request_nonce": nonce.hex(),
        "intel_quote": quote.hex(),
        "nvidia_payload": json.dumps(
            {"nonce": nonce.hex(), "arch": "HOPPER", "evidence_list": gpu_items(nonce)}
        ),
        "event_log": json.dumps(events),
        "info": {"tcb_info": {"app_compose": COMPOSE}},
    }
    if fingerprint:
        report["tls_cert_fingerprint"] = fingerprint.hex()
    change(report)
    return report


def gpu_items(nonce: bytes) -> list[dict[str, Any]]:
    """As NVIDIA's remote collector has them: without the architecture, which is said once."""
    assert {device.arch for device in parse_list(nvidia().evidence(nonce))} == {"HOPPER"}
    items = json.loads(nvidia().evidence(nonce))
    return [{name: item[name] for name in ("evidence", "certificate")} for item in items]


def nitriding(nonce: bytes | None, signer: pki.Signer = SERVER) -> bytes:
    user = b"\x12\x20" + sha256(signer.der).digest() + b"\x12\x20" + sha256(b"application").digest()
    return b64encode(amazon().document(NOW, user_data=user, nonce=nonce))


def ratls(
    kind: str, committed: ec.EllipticCurvePrivateKey | None = None, *, inside: bytes = b"", after: bytes = b""
) -> pki.Signer:
    """A certificate of one of four kinds; `committed` is the key that its quote is about. The rest follows CBOR values."""
    key = pki.p256_key()
    der = (committed or key).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if kind in {"intel", "gramine"}:
        oid = "1.2.840.113741.1337.6" if kind == "intel" else "0.6.9.42.840.113741.1337.6"
        return identity([extension(oid, intel().quote(sha256(der).digest() + bytes(32)))], key)
    if kind == "dstack":
        quote = intel().quote(sha512(b"ratls-cert:" + der).digest())
        octets = b"\x04\x82" + len(quote).to_bytes(2) + quote
        return identity([extension("1.3.6.1.4.1.62397.1.1", octets)], key)
    claims = cbor2.dumps({"pubkey-hash": cbor2.dumps([1, sha256(der).digest()])}) + inside
    quote = intel().quote(sha256(claims).digest() + bytes(32))
    tagged = cbor2.dumps(cbor2.CBORTag(60000, [quote, claims])) + after
    return identity([extension("2.23.133.5.4.9", tagged)], key)


def extension(oid: str, value: bytes) -> tuple[x509.ExtensionType, bool]:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), False


@dataclass
class Provider:
    """A server on loopback. A route is a function of the nonce in the query, or fixed bytes."""

    url: str
    asked: list[str]


Route = bytes | Callable[[bytes], bytes]


@contextmanager
def serving(folder: Path, routes: dict[str, Route], signer: pki.Signer = SERVER) -> Iterator[Provider]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked.append(self.path)
            route = routes.get(url.path)
            nonce = bytes.fromhex(parse_qs(url.query).get("nonce", [""])[0])
            body = route(nonce) if callable(route) else route
            self.send_response(404 if body is None else 200)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    pem = folder / "server.pem"
    secret = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(secret + signer.pem.encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Provider(f"https://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
