"""From bytes to `Foreign`: the formats of Tinfoil, dstack, nitriding and RA-TLS, told apart by what they say.

Any bytes give at least one machine's evidence, or MalformedError. A format that is known by name and not judged here
is refused with its name.
"""

from __future__ import annotations

import json
import zlib
from hashlib import sha256
from typing import Any

from attestation._json import parse_json, parse_json_object
from attestation.checks import Check
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.nitro import Missing, parse_document
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from client_sdk.files import decode
from client_sdk.foreign.document import (
    MAX_DOCUMENT_BYTES,
    ONE_MACHINE,
    Foreign,
    Format,
    NitroEvidence,
    TlsKey,
    malformed,
    read_base64,
    read_hex,
    read_object,
)
from client_sdk.foreign.named import is_snp_report, refuse_named, refuse_named_object
from client_sdk.foreign.ratls import parse_ratls
from client_sdk.foreign.tinfoil import V3_FORMAT, parse_v3

MAX_REPORT_BYTES = 64 * 1024
MAX_MACHINES = 16
NITRIDING_NONCE_BYTES = 20

_V2: dict[str, type[SnpEvidence | TdxEvidence]] = {
    "https://tinfoil.sh/predicate/sev-snp-guest/v2": SnpEvidence,
    "https://tinfoil.sh/predicate/tdx-guest/v2": TdxEvidence,
}
_MULTIHASH = b"\x12\x20"  # SHA-256, 32 bytes
_ALGORITHMS = {"ecdsa": 20, "ed25519": 32}  # what a signing address is long


def recognise(data: bytes) -> tuple[Foreign, ...]:
    """The evidence of every machine in a document, each of them once."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise malformed(f"{len(data)} bytes, the limit is {MAX_DOCUMENT_BYTES}")
    text = data.strip()
    if text[:1] == b"{":
        return _recognise_json(text)
    if text.startswith(b"-----BEGIN CERTIFICATE-----") or data[:2] == b"\x30\x82":
        return (parse_ratls(data),)
    return (_parse_nitriding(data),)


def _recognise_json(data: bytes) -> tuple[Foreign, ...]:
    document = parse_json_object(data, Check.FOREIGN_FORMAT, "the document", limit=MAX_DOCUMENT_BYTES)
    name = document.get("format")
    if isinstance(name, str):
        if kind := _V2.get(name):
            return (_parse_v2(document, kind),)
        if name == V3_FORMAT:
            return (parse_v3(document),)
        raise malformed(f"the format {name[:100]!r} is not one of those that are judged here")
    if "attestation_type" in document or "api_version" in document:
        said = document.get("attestation_type", document.get("api_version"))
        raise malformed(f"a report of kind {str(said)[:100]!r}, which is not judged here")
    return _parse_reports(document)


# Tinfoil, version 2 ────────────────────────────────────────────────────────────────────────────────────────


def _parse_v2(document: dict[str, Any], kind: type[SnpEvidence | TdxEvidence]) -> Foreign:
    """`{"format": …, "body": base64(gzip(report or quote))}`; report data = SHA-256(TLS SPKI) ‖ HPKE key."""
    if set(document) != {"format", "body"}:
        raise malformed(f"expected the members format and body, found {sorted(document)}")
    report = _gunzip(read_base64(document["body"], "body"))
    data = _report_data(kind(report))
    return Foreign(
        format=Format.TINFOIL_V2,
        cpu=kind(report),
        tls=TlsKey(data[:32]),
        keys={"hpke_x25519": data[32:]},
        uncovered=(
            "the nonce: this format has none, so the document may be as old as its TLS key",
            "GPUs: this format has no evidence of them",
            "the software: the measurement is signed; what it is of, a policy or the provider's releases say",
        ),
    )


def _gunzip(data: bytes) -> bytes:
    """One gzip member and nothing after it; never more than a report can have."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        report = inflater.decompress(data, MAX_REPORT_BYTES)
    except zlib.error as exc:
        raise malformed(f"body is not gzip ({exc})") from exc
    if not inflater.eof:
        raise malformed(f"body is cut short, or unpacks to more than {MAX_REPORT_BYTES} bytes")
    if inflater.unused_data:
        raise malformed(f"body has {len(inflater.unused_data)} bytes after its gzip member")
    return report


def _report_data(cpu: SnpEvidence | TdxEvidence) -> bytes:
    if isinstance(cpu, SnpEvidence):
        return parse_report(cpu.report).report_data
    return parse_quote(cpu.quote, padding=True).td.report_data


# dstack: Phala, NEAR and others ────────────────────────────────────────────────────────────────────────────


def _parse_reports(document: dict[str, Any]) -> tuple[Foreign, ...]:
    """One report, or those of a gateway and of the machines behind it."""
    reports = [document] if "intel_quote" in document else []
    if (gateway := document.get("gateway_attestation")) is not None:
        reports.append(gateway)
    for name in ("all_attestations", "model_attestations"):
        nodes = document.get(name) or []
        if not isinstance(nodes, list):
            raise malformed(f"{name} must be a list")
        reports += nodes
    if not reports:
        refuse_named_object(document)
        raise malformed(
            "a JSON object of no format that is known here (`attested inspect` says what other files are)"
        )
    if len(reports) > MAX_MACHINES + 1:
        raise malformed(f"{len(reports)} reports, the limit is {MAX_MACHINES}")
    found: dict[Any, Foreign] = {}
    for report in reports:
        machine = _parse_dstack(report)
        found.setdefault((machine.cpu, machine.report_data), machine)
    return tuple(found.values())


def _parse_dstack(report: Any) -> Foreign:
    """Report data = signing address, padded to 32 bytes, or SHA-256(address ‖ TLS SPKI's SHA-256); then the nonce."""
    report = read_object(report, "a report")
    quote = read_hex(report.get("intel_quote"), "intel_quote")
    if is_snp_report(quote):
        raise malformed("a dstack report of an AMD SEV-SNP machine, which is not judged here")
    signed = parse_quote(quote, padding=True).td.report_data
    algorithm = report.get("signing_algo", "ecdsa")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise malformed(
            f"signing_algo {str(algorithm)[:100]!r} is not known; known are {', '.join(_ALGORITHMS)}"
        )
    address = read_hex(report.get("signing_address"), "signing_address", _ALGORITHMS[algorithm])
    nonce = (
        read_hex(report["request_nonce"], "request_nonce", 32) if "request_nonce" in report else signed[32:]
    )
    fingerprint = report.get("tls_cert_fingerprint")
    tls = None if fingerprint is None else TlsKey(read_hex(fingerprint, "tls_cert_fingerprint", 32))
    identity = sha256(address + tls.sha256).digest() if tls else address.ljust(32, b"\0")
    events, gpus = _events(report.get("event_log")), _gpu_list(report.get("nvidia_payload"))
    return Foreign(
        format=Format.DSTACK,
        cpu=TdxEvidence(quote),
        report_data=(identity + nonce,),
        nonce=nonce,
        tls=tls,
        keys={f"signing_address_{algorithm}": address},
        gpus=gpus,
        events=events,
        compose=_compose(report.get("info")),
        uncovered=_dstack_uncovered(tls, gpus, events),
    )


def _dstack_uncovered(tls: TlsKey | None, gpus: bytes, events: bytes | None) -> tuple[str, ...]:
    lines = [] if tls else ["the TLS connection: this report names no TLS key, so it proves nothing about it"]
    lines += [] if gpus else ["GPUs: this report has no evidence of them"]
    lines += [] if events else ["what was started: this report has no event log"]
    lines += [ONE_MACHINE] if gpus else []
    return (
        *lines,
        "the software: its measurements are signed; what they are of, a policy or the provider's releases say",
    )


def _events(value: Any) -> bytes | None:
    if value in (None, "", []):
        return None
    return value.encode("utf-8", "replace") if isinstance(value, str) else json.dumps(value).encode()


def _compose(info: Any) -> bytes | None:
    """`info.tcb_info.app_compose`, where `tcb_info` is an object or its JSON text."""
    info = info.get("tcb_info") if isinstance(info, dict) else None
    if isinstance(info, str) and info[:1] == "{":
        info = parse_json(info, Check.FOREIGN_FORMAT, "info.tcb_info", limit=MAX_DOCUMENT_BYTES)
    text = info.get("app_compose") if isinstance(info, dict) else None
    return text.encode("utf-8", "replace") if isinstance(text, str) and text else None


def _gpu_list(payload: Any) -> bytes:
    """`{"nonce": …, "arch": …, "evidence_list": […]}` as text or as an object, to NVIDIA's list."""
    if payload in (None, ""):
        return b""
    if isinstance(payload, str):
        payload = parse_json(payload, Check.FOREIGN_FORMAT, "nvidia_payload", limit=MAX_DOCUMENT_BYTES)
    items = payload.get("evidence_list") if isinstance(payload, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise malformed("nvidia_payload must have an evidence_list of objects")
    if not items:
        return b""
    arch = payload.get("arch")
    return json.dumps([_gpu_item(item, arch) for item in items]).encode()


def _gpu_item(item: dict[str, Any], arch: Any) -> dict[str, Any]:
    return {
        "arch": item.get("arch", arch),
        "evidence": item.get("evidence"),
        "certificate": item.get("certificate"),
    }


# nitriding ─────────────────────────────────────────────────────────────────────────────────────────────────


def _parse_nitriding(data: bytes) -> Foreign:
    """A Nitro document whose user data is 1220 ‖ SHA-256(TLS certificate) ‖ 1220 ‖ SHA-256(application's key)."""
    document = decode(data)
    refuse_named(document)
    parsed = parse_document(document)
    user = b"" if isinstance(parsed.user_data, Missing) else parsed.user_data
    if len(user) != 68 or user[:2] != _MULTIHASH or user[34:36] != _MULTIHASH:
        raise malformed(
            "a Nitro document whose user data is not nitriding's two digests; `attested evidence nitro` judges it"
        )
    nonce = None if isinstance(parsed.nonce, Missing) else parsed.nonce
    return Foreign(
        format=Format.NITRIDING,
        cpu=NitroEvidence(document),
        nonce=nonce,
        tls=TlsKey(user[2:34], certificate=True),
        keys={"application_key_sha256": user[36:]},
        uncovered=(
            "GPUs: an enclave has none",
            "what runs the model: the enclave's image is measured; whom it asks for answers, this does not say",
            "the application's key: its digest is signed, the key itself is not in this document",
        ),
    )
