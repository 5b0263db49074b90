"""What a file is, told by its content, and what it says in words. Nothing is verified or judged here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation import bundle, disclosure, nitro, snp, tdx
from attestation._json import parse_json
from attestation._x509 import parse_certificate
from attestation.bundle import MAX_BUNDLE_BYTES
from attestation.checks import Check
from attestation.collateral import IntelCollateral
from attestation.errors import MalformedError, VerificationError
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.measure.dstack import parse_dstack_log
from attestation.measure.eventlog import parse_log
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import parse_list
from attestation.nvidia.evidence import parse_evidence as parse_gpu
from attestation.nvidia.rim import load_rim
from client_sdk.describe_content import (
    azure_evidence,
    disclosed_chat,
    event_text,
    evidence_document,
    gpu_device,
    intel_collateral,
    saved_answers,
    tdx_quote,
    token_claims,
    without,
)
from client_sdk.describe_x509 import PEM, certificate, certificates, guarded, ocsp_answer, revocation_list
from client_sdk.foreign.document import TITLES, Foreign, NitroEvidence
from client_sdk.foreign.formats import recognise
from client_sdk.present import plain

_JWT = re.compile(rb"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{2,}\.[A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Described:
    """What a file seems to be, and its content in plain values. Untrusted."""

    kind: str
    content: Mapping[str, Any]


def describe(data: bytes) -> Described:
    """Tell what `data` is and read it, or MalformedError. A kind that is recognised has to parse as that kind."""
    text = data.strip()
    if text[:1] in (b"{", b"["):
        return _json(data)
    if text.startswith(b"-----BEGIN"):
        return _pem(text)
    if text[:1] == b"<":
        return _manifest(data)
    if _JWT.fullmatch(text):
        return _token(text)
    return _binary(data)


def _binary(data: bytes) -> Described:
    if data[:2] in (b"\x04\x00", b"\x05\x00") and data[4:8] == b"\x81\x00\x00\x00":
        quote = tdx.parse_quote(data, padding=True)
        return Described(f"TDX quote, version {quote.version}", tdx_quote(quote))
    if data[:2] in (b"\x03\x00", b"\x04\x00") and data[4:8] == bytes(4) and len(data) > 432:
        return Described("SGX quote", {"note": "quotes of SGX enclaves are no evidence of a confidential VM"})
    if len(data) == snp.report.REPORT_BYTES:
        report = snp.parse_report(data)
        return Described(f"SEV-SNP report, version {report.version}", plain(report))
    if data[:1] == b"\x84" or data[:2] == b"\xd2\x84":
        return Described(
            "AWS Nitro attestation document", without(plain(nitro.parse_document(data)), "signed")
        )
    if data[:2] == b"\x11\xe0":
        return Described("NVIDIA SPDM measurements", without(plain(parse_gpu(data)), "signed"))
    if data[4:8] == b"\x03\x00\x00\x00" and b"Spec ID Event03\0" in data[:64]:
        return _event_log("TCG event log", parse_log(data))
    if data[:1] == b"\x30":
        return _der(data)
    raise MalformedError(Check.EVIDENCE_FORMAT, "no kind of evidence that this program knows")


def _json(data: bytes) -> Described:
    value = parse_json(data, Check.EVIDENCE_FORMAT, "JSON file", limit=MAX_BUNDLE_BYTES)
    match value:
        case {"__cmwc_t": _} | {"purpose": bundle.PURPOSE | disclosure.PURPOSE}:
            return _ours(value, data)
        case {"tcb_info": _, "qe_identity": _}:
            return Described("Intel collateral", intel_collateral(IntelCollateral.parse(data)))
        case {"rims": _, "ocsp": _}:
            collateral = NvidiaCollateral.parse(data)
            return Described(
                "NVIDIA collateral",
                {
                    "rims": [dict(_manifest(rim).content) for rim in collateral.rims],
                    "ocsp": len(collateral.ocsp),
                },
            )
        case {"quote": {"message": _}} | {"tpm_quote": _}:
            return Described("Azure confidential VM's evidence", azure_evidence(data))
        case {"format": str()} | {"intel_quote": _} | {"gateway_attestation": _} | {"all_attestations": _}:
            machines = [_foreign(machine) for machine in recognise(data)]
            return Described("another provider's evidence", {"machines": machines})
        case [["JWT", str(overall)], dict(devices)]:
            tokens = {name: token_claims(str(token).encode()) for name, token in devices.items()}
            return Described(
                "NVIDIA attestation token", {"overall": token_claims(overall.encode()), "devices": tokens}
            )
        case [{"imr": _}, *_]:
            return _event_log("dstack event log", parse_dstack_log(data))
        case [{"evidence": _}, *_]:
            devices_read = [gpu_device(device) for device in parse_list(data)]
            return Described("NVIDIA GPU evidence", {"devices": devices_read})
    raise MalformedError(Check.EVIDENCE_FORMAT, "JSON, but no kind of evidence that this program knows")


def _ours(value: Mapping[str, Any], data: bytes) -> Described:
    match value.get("purpose"):
        case bundle.PURPOSE:
            return Described("saved answers", saved_answers(data))
        case disclosure.PURPOSE:
            return Described("disclosure of a saved chat", disclosed_chat(data))
    return Described("evidence document", evidence_document(data))


def _foreign(machine: Foreign) -> dict[str, Any]:
    match machine.cpu:
        case TdxEvidence(raw) | SnpEvidence(raw) | NitroEvidence(raw):
            cpu = _binary(raw)
        case _:
            assert_never(machine.cpu)
    return {
        "format": TITLES[machine.format],
        "cpu": {"kind": cpu.kind, **cpu.content},
        "nonce": plain(machine.nonce),
        "tls_sha256": plain(machine.tls.sha256 if machine.tls else None),
        "keys": plain(machine.keys),
        "gpus": [gpu_device(device) for device in parse_list(machine.gpus)] if machine.gpus else [],
        "not_covered": list(machine.uncovered),
    }


def _event_log(kind: str, log: Any) -> Described:
    events = [
        {
            "register": log.kind.name_of(event.register),
            "type": f"{event.type:#x}",
            "data": event_text(event.data),
        }
        for event in log.events
    ]
    return Described(kind, {"algorithms": [a.name for a in log.algorithms], "events": events})


def _manifest(data: bytes) -> Described:
    try:
        rim = load_rim(data)
    except VerificationError as exc:  # nothing of a manifest is read but what its signature covers
        raise MalformedError(exc.check, exc.detail) from exc
    content = {
        "product": rim.product,
        "version": rim.version,
        "active measurements": sorted(rim.golden),
        "chain": [certificate(cert) for cert in rim.chain],
    }
    return Described("NVIDIA reference manifest (RIM)", content)


def _token(text: bytes) -> Described:
    claims = token_claims(text)
    receipt = claims["header"].get("typ") == "attested-receipt+jwt"
    return Described("receipt" if receipt else "JSON web token", claims)


def _pem(text: bytes) -> Described:
    labels = {match[1] for match in PEM.finditer(text)}
    if labels == {b"CERTIFICATE"}:
        return Described("certificates", {"certificates": [certificate(cert) for cert in certificates(text)]})
    if labels == {b"X509 CRL"}:
        return Described(
            "revocation list",
            revocation_list(guarded(x509.load_pem_x509_crl, text).public_bytes(Encoding.DER)),
        )
    raise MalformedError(Check.EVIDENCE_FORMAT, "PEM, but neither certificates nor a revocation list")


def _der(data: bytes) -> Described:
    try:
        return Described(
            "certificate", certificate(parse_certificate(data, Check.EVIDENCE_FORMAT, "DER file"))
        )
    except MalformedError:
        pass
    try:
        return Described("revocation list", revocation_list(data))
    except MalformedError:
        answer = guarded(ocsp.load_der_ocsp_response, data)
        return Described("OCSP answer", guarded(ocsp_answer, answer))
