"""Certificates, revocation lists and OCSP answers in words. Nothing is verified or judged here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.x509 import ocsp

from attestation._x509 import common_name, parse_certificate, parse_crl
from attestation.checks import Check
from attestation.errors import MalformedError
from client_sdk.present import plain

PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


def ocsp_answer(answer: ocsp.OCSPResponse) -> dict[str, Any]:
    if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        return {"status": answer.response_status.name}
    singles = [
        {
            "serial": f"{single.serial_number:x}",
            "status": single.certificate_status.name,
            "this_update": plain(single.this_update_utc),
            "next_update": plain(single.next_update_utc),
        }
        for single in answer.responses
    ]
    return {"status": "SUCCESSFUL", "certificates": singles}


def certificates(pem: bytes) -> list[x509.Certificate]:
    blocks = [match[0] for match in PEM.finditer(pem)]
    return [parse_certificate(block, Check.EVIDENCE_FORMAT, "certificate") for block in blocks]


def certificate(cert: x509.Certificate) -> dict[str, Any]:
    def read(cert: x509.Certificate) -> dict[str, Any]:  # cryptography parses most of it only now
        return {
            "subject": common_name(cert.subject),
            "issuer": common_name(cert.issuer),
            "not_before": plain(cert.not_valid_before_utc),
            "not_after": plain(cert.not_valid_after_utc),
        }

    fields: dict[str, Any] = guarded(read, cert)
    return fields


def revocation_list(der: bytes) -> dict[str, Any]:
    crl = parse_crl(der, Check.EVIDENCE_FORMAT, "revocation list")
    return {
        "issuer": guarded(common_name, crl.issuer),
        "this_update": plain(crl.last_update_utc),
        "next_update": plain(crl.next_update_utc),
        "revoked": guarded(len, crl),
    }


def guarded(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except Exception as exc:  # cryptography raises ValueError and several others for bad DER
        raise MalformedError(Check.EVIDENCE_FORMAT, f"not acceptable DER ({exc})") from exc
