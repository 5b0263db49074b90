"""Tinfoil's documents of version 3: a challenge, a CPU's report and two sections that its report data commits to.

    report data = SHA-256( "https://tinfoil.sh/report-data/v1" ‖ nonce ‖ SHA-256(crypto_material) ‖ SHA-256(device_evidence) ) ‖ 0³²

The sections travel in base64, and their digests are over the bytes inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.collateral import AmdCollateral
from attestation.evidence import SnpEvidence, TdxEvidence
from attestation.snp.report import parse_report
from attestation.tdx.quote import parse_quote
from client_sdk.foreign.document import (
    MAX_DOCUMENT_BYTES,
    ONE_MACHINE,
    Foreign,
    Format,
    TlsKey,
    malformed,
    read_base64,
    read_hex,
    read_object,
)

V3_FORMAT = "https://tinfoil.sh/predicate/attestation/v3"
REPORT_DATA = "https://tinfoil.sh/report-data/v1"
CRYPTO_MATERIAL = "https://tinfoil.sh/crypto-material/v1"
DEVICE_EVIDENCE = "https://tinfoil.sh/device-evidence/v1"
SNP_REPORT = "https://tinfoil.sh/format/sev-snp-report/v1"
TDX_QUOTE = "https://tinfoil.sh/format/tdx-quote/v1"
GPU_EVIDENCE = "https://tinfoil.sh/format/nvidia-gpu-evidence/v1"
KEY_SPKI_SHA256 = "https://tinfoil.sh/key/spki-fp-sha256/v1"
KEY_HPKE = "https://tinfoil.sh/key/x25519-hpke/v1"
AMD_VCEK = "https://tinfoil.sh/collateral/amd-vcek/v1"
AMD_CRL = "https://tinfoil.sh/collateral/amd-crl/v1"

_MEMBERS = {"format", "challenge", "cpu_evidence", "crypto_material", "device_evidence", "collateral"}


def parse_v3(document: Mapping[str, Any]) -> Foreign:
    """One document, its members exactly those of the format. Unknown kinds of keys and devices are not judged."""
    if set(document) != _MEMBERS:
        raise malformed(f"missing or unknown members {sorted(set(document) ^ _MEMBERS)}")
    challenge = read_object(document["challenge"], "challenge")
    if challenge.get("report_data_algorithm") != REPORT_DATA:
        raise malformed(f"report_data_algorithm must be {REPORT_DATA!r}")
    nonce = _hex(challenge.get("nonce"), "challenge.nonce", 32)
    crypto, devices = (read_base64(document[name], name) for name in ("crypto_material", "device_evidence"))
    keys = _items(crypto, CRYPTO_MATERIAL, "crypto_material")
    machines = _items(devices, DEVICE_EVIDENCE, "device_evidence")
    gpus, others = _gpus(machines)
    committed = sha256(REPORT_DATA.encode() + nonce + sha256(crypto).digest() + sha256(devices).digest())
    tls = next(
        (k for k in keys if (k.get("id"), k.get("format")) == ("tls", KEY_SPKI_SHA256)),
        None,
    )
    return Foreign(
        format=Format.TINFOIL_V3,
        cpu=_cpu(read_object(document["cpu_evidence"], "cpu_evidence")),
        report_data=(committed.digest() + bytes(32),),
        nonce=nonce,
        tls=TlsKey(_hex(tls.get("data"), "the TLS key's digest", 32)) if tls else None,
        keys={
            f"{k['id']}_x25519": _hex(k.get("data"), "the HPKE key", 32)
            for k in keys
            if k["format"] == KEY_HPKE
        },
        gpus=gpus,
        amd=_amd(document["collateral"]),
        uncovered=_uncovered(tls is not None, bool(gpus), others),
    )


def _uncovered(tls: bool, gpus: bool, others: int) -> tuple[str, ...]:
    lines = [] if tls else ["the TLS connection: this document names no TLS key in a form that is known here"]
    lines += [] if gpus else ["GPUs: this document has no evidence of them"]
    lines += [f"{others} devices whose evidence is of a kind that is not judged here"] if others else []
    lines += [ONE_MACHINE] if gpus else []
    return (
        *lines,
        "the software: its measurement is signed; the provenance that comes along (Sigstore) is not judged here",
    )


def _cpu(evidence: Mapping[str, Any]) -> SnpEvidence | TdxEvidence:
    report = read_base64(evidence.get("report_base64"), "cpu_evidence.report_base64")
    match evidence.get("format"):
        case name if name == SNP_REPORT:
            parse_report(report)
            return SnpEvidence(report)
        case name if name == TDX_QUOTE:
            parse_quote(report, padding=True)
            return TdxEvidence(report)
    raise malformed("cpu_evidence.format must be an SEV-SNP report's or a TDX quote's")


def _items(section: bytes, name: str, what: str) -> Sequence[Mapping[str, Any]]:
    """The items of a section, each with an id of its own and a format."""
    content = parse_json_object(section, Check.FOREIGN_FORMAT, what, limit=MAX_DOCUMENT_BYTES)
    items = content.get("items")
    if content.get("format") != name or not isinstance(items, list) or len(content) != 2:
        raise malformed(f"{what} must have the format {name!r} and items")
    found = [read_object(item, f"an item of {what}") for item in items]
    texts = [(item.get("id"), item.get("format")) for item in found]
    if not all(isinstance(a, str) and a and isinstance(b, str) for a, b in texts):
        raise malformed(f"every item of {what} must have an id and a format")
    if len({a for a, _ in texts}) != len(texts):
        raise malformed(f"two items of {what} have one id")
    return found


def _gpus(items: Sequence[Mapping[str, Any]]) -> tuple[bytes, int]:
    """NVIDIA's list, and how many devices are of another kind."""
    known = [read_object(i.get("evidence"), "a GPU's evidence") for i in items if i["format"] == GPU_EVIDENCE]
    listed = [{name: item.get(name) for name in ("arch", "evidence", "certificate")} for item in known]
    return json.dumps(listed).encode() if listed else b"", len(items) - len(known)


def _amd(entries: Any) -> AmdCollateral | None:
    """AMD's certificates and revocation list, where all of them came along."""
    if not isinstance(entries, list):
        raise malformed("collateral must be a list")
    found = [read_object(entry, "an entry of collateral") for entry in entries]
    data = {str(entry.get("format")): entry.get("data") for entry in found}
    vcek, crl = data.get(AMD_VCEK), data.get(AMD_CRL)
    if vcek is None or crl is None:
        return None
    vcek, crl = read_object(vcek, "AMD's certificate"), read_object(crl, "AMD's revocation list")
    chain = vcek.get("cert_chain_pem")
    if not isinstance(chain, str):
        raise malformed("cert_chain_pem must be a text")
    return AmdCollateral(
        vek=read_base64(vcek.get("vcek_der_base64"), "vcek_der_base64"),
        chain=chain.encode("utf-8", "replace"),
        crl=read_base64(crl.get("crl_der_base64"), "crl_der_base64"),
    )


def _hex(value: Any, what: str, size: int) -> bytes:
    data = read_hex(value, what, size)
    if data.hex() != value:
        raise malformed(f"{what} must be in lower case")
    return data
