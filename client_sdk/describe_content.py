"""What a file of each kind says, in plain values. Nothing is verified or judged here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

import jwt

from attestation import bundle, disclosure, snp, tdx, vtpm
from attestation._json import parse_json
from attestation.binding import parse_statement
from attestation.checks import Check
from attestation.collateral import MAX_COLLATERAL_BYTES, IntelCollateral
from attestation.errors import MalformedError
from attestation.evidence import SnpEvidence, TdxEvidence, parse_evidence
from attestation.nvidia.devices import GpuDevice, parse_list
from attestation.nvidia.evidence import parse_evidence as parse_gpu
from client_sdk.describe_x509 import certificate, certificates, revocation_list
from client_sdk.present import plain


def saved_answers(data: bytes) -> dict[str, Any]:
    """Prompts and answers are not shown, only how long they are."""
    saved = bundle.parse_bundle(data)
    exchanges = [
        {
            "receipt": token_claims(exchange.receipt.encode())["claims"],
            "request": "not saved" if exchange.request is None else f"{len(exchange.request)} bytes",
            "response": "not saved" if exchange.response is None else f"{len(exchange.response)} bytes",
            "logged": exchange.log is not None,
        }
        for exchange in saved.exchanges
    ]
    return {"exchanges": exchanges, "evidence": evidence_document(saved.evidence)}


def disclosed_chat(data: bytes) -> dict[str, Any]:
    found = disclosure.parse_disclosure(data)
    shown = {
        name: ["shown" if isinstance(part, disclosure.Shown) else "hidden" for part in parts]
        for name, parts in (("messages", found.messages), ("choices", found.choices))
    }
    receipt = token_claims(found.receipt.encode())["claims"]
    return {**shown, "receipt": receipt, "evidence": evidence_document(found.evidence)}


def evidence_document(data: bytes) -> dict[str, Any]:
    evidence = parse_evidence(data)
    match evidence.cpu:
        case TdxEvidence(quote):
            cpu = {"kind": "TDX quote"} | tdx_quote(tdx.parse_quote(quote, padding=True))
        case SnpEvidence(report):
            cpu = {"kind": "SEV-SNP report"} | plain(snp.parse_report(report))
        case vtpm.AzureEvidence():
            cpu = {"kind": "Azure confidential VM's evidence"} | azure_evidence(
                vtpm.dump_evidence(evidence.cpu)
            )
        case never:
            assert_never(never)
    intel, amd = evidence.collateral.intel, evidence.collateral.amd
    return {
        "statement": plain(parse_statement(evidence.statement)),
        "cpu": cpu,
        "gpus": [gpu_device(device) for device in parse_list(evidence.gpu)] if evidence.gpu else [],
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


def azure_evidence(data: bytes) -> dict[str, Any]:
    evidence = vtpm.parse_evidence(data)
    hcl = vtpm.parse_hcl_report(evidence.hcl_report)
    hardware = {} if hcl.report_type is vtpm.ReportType.TDX else plain(snp.parse_report(hcl.hardware_report))
    if evidence.td_quote:
        hardware = tdx_quote(tdx.parse_quote(evidence.td_quote, padding=True))
    return {
        "hardware": {"kind": hcl.report_type.name} | hardware,
        "configuration": plain(hcl.runtime_data.configuration),
        "user_data": hcl.runtime_data.user_data.hex(),
        "quote": plain(vtpm.parse_quote(evidence.quote)),
        "pcrs": [value.hex() for value in evidence.pcrs],
    }


def tdx_quote(quote: tdx.Quote) -> dict[str, Any]:
    read: dict[str, Any] = plain(quote)
    for word in ("td_attributes", "xfam", "seam_attributes"):
        read["td"][word] = f"{read['td'][word]:#018x}"
    read["pck_chain"] = [certificate(cert) for cert in certificates(quote.pck_chain)]
    read["qe_report"] = without(read["qe_report"], "raw")
    return without(read, "signed")


def gpu_device(device: GpuDevice) -> dict[str, Any]:
    return {
        "arch": str(device.arch),
        "state": plain(device.state),
        "report": without(plain(parse_gpu(device.report)), "signed"),
        "chain": [certificate(cert) for cert in certificates(device.chain)],
    }


def intel_collateral(collateral: IntelCollateral) -> dict[str, Any]:
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


def event_text(data: bytes) -> str:
    text = data[:120].decode("utf-8", errors="replace").rstrip("\0")
    return text if text.isprintable() else data[:60].hex() + ("…" if len(data) > 60 else "")


def token_claims(token: bytes) -> dict[str, Any]:
    try:
        read = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as exc:
        raise MalformedError(Check.EVIDENCE_FORMAT, f"not a JSON web token ({exc})") from exc
    return {"header": plain(read["header"]), "claims": plain(read["payload"])}


def without(content: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}
