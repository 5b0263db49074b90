"""The evidence document on the wire: one JSON file, a CMW collection (RFC 9999), with limits in both directions.

It carries the statement, the CPU's and the GPUs' evidence, and the vendors' collateral stapled to it, so that a
client decides offline. Everything here is untrusted: parsing judges nothing. `docs/protocol.md` §3 has the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from attestation import vtpm
from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.collateral import AmdCollateral, Collateral, IntelCollateral
from attestation.errors import MalformedError
from attestation.nvidia.collateral import NvidiaCollateral
from attestation.vtpm import AzureEvidence

MEDIA_TYPE = "application/cmw+json"
COLLECTION_TYPE = "tag:attested-inference,2026:evidence#1"
COLLATERAL_TYPE = "tag:attested-inference,2026:collateral#1"
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024

_VND = "application/vnd.attested-inference."
STATEMENT_TYPE = _VND + "statement+json"
TDX_TYPE = _VND + "tdx-quote"
SNP_TYPE = _VND + "snp-report"
AZURE_TYPE = _VND + "azure-evidence+json"
EVENT_LOG_TYPE = _VND + "tcg-event-log"
SEAL_TYPE = _VND + "serving-seal"
GPU_TYPE = _VND + "nvidia-evidence+json"
GPU_TOKEN_TYPE = _VND + "gpu-token"
INTEL_TYPE = _VND + "intel-collateral+json"
NVIDIA_TYPE = _VND + "nvidia-collateral+json"
PEM_TYPE = "application/pem-certificate-chain"
CERT_TYPE = "application/pkix-cert"
CRL_TYPE = "application/pkix-crl"

_ENDORSEMENTS, _EVIDENCE = 2, 4  # RFC 9999 §3: the bits of a record's indicator


@dataclass(frozen=True, slots=True)
class TdxEvidence:
    """An Intel TDX quote, as the machine gave it out."""

    quote: bytes


@dataclass(frozen=True, slots=True)
class SnpEvidence:
    """An AMD SEV-SNP attestation report, as the machine gave it out."""

    report: bytes


#: What the CPU signed; on Azure its paravisor's vTPM speaks for the VM, and the CPU for the paravisor.
CpuEvidence = TdxEvidence | SnpEvidence | AzureEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One answer of an enclave: parsed into parts, and not yet believed."""

    statement: bytes
    cpu: CpuEvidence
    gpu: bytes = b""  # NVIDIA's evidence list as JSON; empty when the machine has no GPU
    gpu_token: bytes = b""  # an attestation service's token about the GPUs, for policies that accept one
    event_log: bytes = b""  # the boot's log in TCG2 format, as the firmware's CCEL table has it
    serving_seal: bytes = b""  # of the statement, by the key that RTMR3 names
    collateral: Collateral = field(default_factory=Collateral)


def dump_evidence(evidence: Evidence) -> bytes:
    """The document that `parse_evidence` reads."""
    match evidence.cpu:
        case TdxEvidence(quote):
            cpu = _record(TDX_TYPE, quote, _EVIDENCE)
        case SnpEvidence(report):
            cpu = _record(SNP_TYPE, report, _EVIDENCE)
        case AzureEvidence():
            cpu = _record(AZURE_TYPE, vtpm.dump_evidence(evidence.cpu), _EVIDENCE)
        case never:
            assert_never(never)
    document: dict[str, Any] = {
        "__cmwc_t": COLLECTION_TYPE,
        "statement": _record(STATEMENT_TYPE, evidence.statement, _EVIDENCE),
        "cpu": cpu,
    }
    optional = (
        ("gpu", GPU_TYPE, evidence.gpu),
        ("gpu-token", GPU_TOKEN_TYPE, evidence.gpu_token),
        ("event-log", EVENT_LOG_TYPE, evidence.event_log),
        ("serving-seal", SEAL_TYPE, evidence.serving_seal),
    )
    document |= {name: _record(kind, value, _EVIDENCE) for name, kind, value in optional if value}
    if collateral := _dump_collateral(evidence.collateral):
        document["collateral"] = {"__cmwc_t": COLLATERAL_TYPE, **collateral}
    return json.dumps(document, separators=(",", ":")).encode()


def _dump_collateral(collateral: Collateral) -> dict[str, Any]:
    intel, amd, nvidia = collateral.intel, collateral.amd, collateral.nvidia
    optional = (
        ("intel", INTEL_TYPE, intel.to_json() if intel else b""),
        ("amd-vek", CERT_TYPE, amd.vek if amd else b""),
        ("amd-chain", PEM_TYPE, amd.chain if amd else b""),
        ("amd-crl", CRL_TYPE, amd.crl if amd else b""),
        ("nvidia", NVIDIA_TYPE, nvidia.to_json() if nvidia else b""),
    )
    return {name: _record(kind, value, _ENDORSEMENTS) for name, kind, value in optional if value}


def parse_evidence(data: bytes) -> Evidence:
    """Read an evidence document. Judges nothing: every part still has to be verified."""
    document = _collection(
        parse_json_object(data, Check.EVIDENCE_FORMAT, "evidence document", limit=MAX_DOCUMENT_BYTES),
        COLLECTION_TYPE,
        required={"statement", "cpu"},
        optional={"gpu", "gpu-token", "event-log", "serving-seal", "collateral"},
    )
    kind, cpu = _read(document, "cpu", *_CPU)
    return Evidence(
        statement=_read(document, "statement", STATEMENT_TYPE)[1],
        cpu=_CPU[kind](cpu),
        gpu=_read(document, "gpu", GPU_TYPE)[1] if "gpu" in document else b"",
        gpu_token=_read(document, "gpu-token", GPU_TOKEN_TYPE)[1] if "gpu-token" in document else b"",
        event_log=_read(document, "event-log", EVENT_LOG_TYPE)[1] if "event-log" in document else b"",
        serving_seal=_read(document, "serving-seal", SEAL_TYPE)[1] if "serving-seal" in document else b"",
        collateral=_parse_collateral(document["collateral"]) if "collateral" in document else Collateral(),
    )


_CPU: Mapping[str, Callable[[bytes], CpuEvidence]] = {
    TDX_TYPE: TdxEvidence,
    SNP_TYPE: SnpEvidence,
    AZURE_TYPE: vtpm.parse_evidence,
}


def _parse_collateral(value: object) -> Collateral:
    if not isinstance(value, dict):
        raise MalformedError(Check.EVIDENCE_FORMAT, "collateral must be a collection")
    amd_names = {"amd-vek", "amd-chain", "amd-crl"}
    table = _collection(value, COLLATERAL_TYPE, required=set(), optional={"intel", "nvidia"} | amd_names)
    intel = amd = nvidia = None
    if "intel" in table:
        intel = IntelCollateral.parse(_read(table, "intel", INTEL_TYPE)[1])
    if amd_names & set(table):
        amd = AmdCollateral(
            vek=_read(table, "amd-vek", CERT_TYPE)[1],
            chain=_read(table, "amd-chain", PEM_TYPE)[1],
            crl=_read(table, "amd-crl", CRL_TYPE)[1] if "amd-crl" in table else b"",
        )
    if "nvidia" in table:
        nvidia = NvidiaCollateral.parse(_read(table, "nvidia", NVIDIA_TYPE)[1])
    return Collateral(intel=intel, amd=amd, nvidia=nvidia)


def _collection(
    value: dict[str, Any], kind: str, *, required: set[str], optional: set[str]
) -> Mapping[str, Any]:
    found = value.pop("__cmwc_t", None)
    if found != kind:
        raise MalformedError(
            Check.EVIDENCE_FORMAT, f"expected a collection of type {kind!r}, found {found!r}"
        )
    if not required <= set(value) <= required | optional:
        wrong = sorted((required - set(value)) | (set(value) - required - optional))
        raise MalformedError(
            Check.EVIDENCE_FORMAT, f"collection {kind!r}: missing or unknown members {wrong}"
        )
    return value


def _record(kind: str, value: bytes, indicator: int) -> list[str | int]:
    return [kind, b64url_encode(value), indicator]


def _read(collection: Mapping[str, Any], name: str, *kinds: str) -> tuple[str, bytes]:
    match collection.get(name):
        case [str(kind), str(text)] | [str(kind), str(text), int()] if kind in kinds:
            return kind, b64url_decode(text, Check.EVIDENCE_FORMAT, name)
    raise MalformedError(Check.EVIDENCE_FORMAT, f"{name} must be a CMW record of type {' or '.join(kinds)}")
