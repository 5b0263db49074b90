"""Any evidence in words: what a file is, told by its content, and what it says. Nothing is verified or judged here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, assert_never

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation import bundle, disclosure, nitro, snp, tdx, vtpm
from attestation._json import parse_json
from attestation._x509 import parse_certificate
from attestation.binding import parse_statement
from attestation.bundle import MAX_BUNDLE_BYTES
from attestation.checks import Check
from attestation.collateral import MAX_COLLATERAL_BYTES, IntelCollateral
from attestation.errors import MalformedError, VerificationError
from attestation.evidence import SnpEvidence, TdxEvidence, parse_evidence
from attestation.measure.dstack import parse_dstack_log
from attestation.measure.eventlog import parse_log
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.nvidia.devices import GpuDevice, parse_list
from attestation.nvidia.evidence import parse_evidence as parse_gpu
from attestation.nvidia.rim import load_rim
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
        return Described(f"TDX quote, version {quote.version}", _quote(quote))
    if data[:2] in (b"\x03\x00", b"\x04\x00") and data[4:8] == bytes(4) and len(data) > 432:
        return Described("SGX quote", {"note": "quotes of SGX enclaves are no evidence of a confidential VM"})
    if len(data) == snp.report.REPORT_BYTES:
        report = snp.parse_report(data)
        return Described(f"SEV-SNP report, version {report.version}", plain(report))
    if data[:1] == b"\x84" or data[:2] == b"\xd2\x84":
        return Described(
            "AWS Nitro attestation document", _without(plain(nitro.parse_document(data)), "signed")
        )
    if data[:2] == b"\x11\xe0":
        return Described("NVIDIA SPDM measurements", _without(plain(parse_gpu(data)), "signed"))
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
            return Described("Intel collateral", _intel(IntelCollateral.parse(data)))
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
            return Described("Azure confidential VM's evidence", _azure(data))
        case {"format": str()} | {"intel_quote": _} | {"gateway_attestation": _} | {"all_attestations": _}:
            machines = [_foreign(machine) for machine in recognise(data)]
            return Described("another provider's evidence", {"machines": machines})
        case [["JWT", str(overall)], dict(devices)]:
            tokens = {name: _claims(str(token).encode()) for name, token in devices.items()}
            return Described(
                "NVIDIA attestation token", {"overall": _claims(overall.encode()), "devices": tokens}
            )
        case [{"imr": _}, *_]:
            return _event_log("dstack event log", parse_dstack_log(data))
        case [{"evidence": _}, *_]:
            devices_read = [_device(device) for device in parse_list(data)]
            return Described("NVIDIA GPU evidence", {"devices": devices_read})
    raise MalformedError(Check.EVIDENCE_FORMAT, "JSON, but no kind of evidence that this program knows")


def _ours(value: Mapping[str, Any], data: bytes) -> Described:
    match value.get("purpose"):
        case bundle.PURPOSE:
            return Described("saved answers", _saved(data))
        case disclosure.PURPOSE:
            return Described("disclosure of a saved chat", _disclosed(data))
    return Described("evidence document", _document(data))


def _saved(data: bytes) -> dict[str, Any]:
    """Prompts and answers are not shown, only how long they are."""
    saved = bundle.parse_bundle(data)
    exchanges = [
        {
            "receipt": _claims(exchange.receipt.encode())["claims"],
            "request": "not saved" if exchange.request is None else f"{len(exchange.request)} bytes",
            "response": "not saved" if exchange.response is None else f"{len(exchange.response)} bytes",
            "logged": exchange.log is not None,
        }
        for exchange in saved.exchanges
    ]
    return {"exchanges": exchanges, "evidence": _document(saved.evidence)}


def _disclosed(data: bytes) -> dict[str, Any]:
    found = disclosure.parse_disclosure(data)
    shown = {
        name: ["shown" if isinstance(part, disclosure.Shown) else "hidden" for part in parts]
        for name, parts in (("messages", found.messages), ("choices", found.choices))
    }
    receipt = _claims(found.receipt.encode())["claims"]
    return {**shown, "receipt": receipt, "evidence": _document(found.evidence)}


def _document(data: bytes) -> dict[str, Any]:
    evidence = parse_evidence(data)
    match evidence.cpu:
        case TdxEvidence(quote):
            cpu = {"kind": "TDX quote"} | _quote(tdx.parse_quote(quote, padding=True))
        case SnpEvidence(report):
            cpu = {"kind": "SEV-SNP report"} | plain(snp.parse_report(report))
        case vtpm.AzureEvidence():
            cpu = {"kind": "Azure confidential VM's evidence"} | _azure(vtpm.dump_evidence(evidence.cpu))
        case never:
            assert_never(never)
    intel, amd = evidence.collateral.intel, evidence.collateral.amd
    return {
        "statement": plain(parse_statement(evidence.statement)),
        "cpu": cpu,
        "gpus": [_device(device) for device in parse_list(evidence.gpu)] if evidence.gpu else [],
        "gpu_token": bool(evidence.gpu_token),
        "event_log": bool(evidence.event_log),
        "serving_seal": bool(evidence.serving_seal),
        "collateral": {
            "intel": intel is not None,
            "amd": amd is not None,
            "amd_crl": bool(amd and amd.crl),
            "nvidia": evidence.collateral.nvidia is not None,
        },
    }


def _azure(data: bytes) -> dict[str, Any]:
    evidence = vtpm.parse_evidence(data)
    hcl = vtpm.parse_hcl_report(evidence.hcl_report)
    hardware = {} if hcl.report_type is vtpm.ReportType.TDX else plain(snp.parse_report(hcl.hardware_report))
    if evidence.td_quote:
        hardware = _quote(tdx.parse_quote(evidence.td_quote, padding=True))
    return {
        "hardware": {"kind": hcl.report_type.name} | hardware,
        "configuration": plain(hcl.runtime_data.configuration),
        "user_data": hcl.runtime_data.user_data.hex(),
        "quote": plain(vtpm.parse_quote(evidence.quote)),
        "pcrs": [value.hex() for value in evidence.pcrs],
    }


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
        "gpus": [_device(device) for device in parse_list(machine.gpus)] if machine.gpus else [],
        "not_covered": list(machine.uncovered),
    }


def _quote(quote: tdx.Quote) -> dict[str, Any]:
    read: dict[str, Any] = plain(quote)
    for word in ("td_attributes", "xfam", "seam_attributes"):
        read["td"][word] = f"{read['td'][word]:#018x}"
    read["pck_chain"] = [certificate(cert) for cert in certificates(quote.pck_chain)]
    read["qe_report"] = _without(read["qe_report"], "raw")
    return _without(read, "signed")


def _device(device: GpuDevice) -> dict[str, Any]:
    return {
        "arch": str(device.arch),
        "state": plain(device.state),
        "report": _without(plain(parse_gpu(device.report)), "signed"),
        "chain": [certificate(cert) for cert in certificates(device.chain)],
    }


def _intel(collateral: IntelCollateral) -> dict[str, Any]:
    def read(text: str) -> Any:
        value = parse_json(text, Check.TDX_COLLATERAL_FORMAT, "Intel collateral", limit=MAX_COLLATERAL_BYTES)
        return (
            {k: v for k, v in value.items() if not isinstance(v, (list, dict))}
            if isinstance(value, dict)
            else {}
        )

    return {
        "tcb_info": read(collateral.tcb_info),
        "qe_identity": read(collateral.qe_identity),
        "root_ca_crl": revocation_list(collateral.root_ca_crl),
        "pck_crl": revocation_list(collateral.pck_crl),
    }


def _event_log(kind: str, log: Any) -> Described:
    events = [
        {
            "register": log.kind.name_of(event.register),
            "type": f"{event.type:#x}",
            "data": _event_text(event.data),
        }
        for event in log.events
    ]
    return Described(kind, {"algorithms": [a.name for a in log.algorithms], "events": events})


def _event_text(data: bytes) -> str:
    text = data[:120].decode("utf-8", errors="replace").rstrip("\0")
    return text if text.isprintable() else data[:60].hex() + ("…" if len(data) > 60 else "")


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
    claims = _claims(text)
    receipt = claims["header"].get("typ") == "attested-receipt+jwt"
    return Described("receipt" if receipt else "JSON web token", claims)


def _claims(token: bytes) -> dict[str, Any]:
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise MalformedError(Check.EVIDENCE_FORMAT, f"not a JSON web token ({exc})") from exc
    return {"header": plain(read["header"]), "claims": plain(read["payload"])}


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


def _without(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}
