"""Collateral: what a vendor publishes beside the evidence and a verifier needs to judge it offline.

Untrusted until a verifier has checked its signatures and dates; this module only carries it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.nvidia.collateral import NvidiaCollateral

MAX_COLLATERAL_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelCollateral:
    """Intel PCS answers in the JSON layout of `dcap-qvl` (CRLs and signatures as bytes here, hex there).

    `tcb_info` and `qe_identity` are the exact texts Intel signed; re-serialising would break the signatures.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes

    @classmethod
    def parse(cls, data: bytes, check: Check = Check.EVIDENCE_FORMAT) -> IntelCollateral:
        raw = parse_json_object(data, check, "Intel collateral", limit=MAX_COLLATERAL_BYTES)
        raw.pop("pck_certificate_chain", None)  # dcap-qvl may add it; ours comes from the quote
        names = {f.name: f.type for f in fields(cls)}
        if set(raw) != set(names):
            wrong = sorted(set(raw) ^ set(names))
            raise MalformedError(check, f"Intel collateral: missing or unknown fields {wrong}")
        values: dict[str, str | bytes] = {}
        for name, kind in names.items():
            text = raw[name]
            if not isinstance(text, str):
                raise MalformedError(check, f"Intel collateral: {name} must be a string")
            try:
                values[name] = bytes.fromhex(text) if kind == "bytes" else text
            except ValueError as exc:
                raise MalformedError(check, f"Intel collateral: {name} is not hex") from exc
        return cls(**values)  # type: ignore[arg-type]  # built from the fields' own types just above

    def to_json(self) -> bytes:
        return json.dumps(
            {k: v.hex() if isinstance(v, bytes) else v for k, v in asdict(self).items()}
        ).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdCollateral:
    """AMD KDS answers: the chip's (or cloud's) endorsement certificate, its issuers, and AMD's CRL."""

    vek: bytes  # DER: VCEK or VLEK
    chain: bytes  # PEM: ASK or ASVK, then ARK
    crl: bytes  # DER, signed by the ARK; empty when the server had none


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """What came along with the evidence, or was fetched; a vendor that is absent is None."""

    intel: IntelCollateral | None = None
    amd: AmdCollateral | None = None
    nvidia: NvidiaCollateral | None = None
