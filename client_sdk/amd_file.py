"""AMD's collateral as one JSON file, as `attested collateral fetch` writes it and `attested evidence snp` reads it."""

from __future__ import annotations

import json

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.collateral import MAX_COLLATERAL_BYTES, AmdCollateral
from attestation.errors import MalformedError


def dump_amd(collateral: AmdCollateral) -> bytes:
    """AMD's three answers as one JSON file: DER in hex, the chain as PEM."""
    fields = {"vek": collateral.vek.hex(), "chain": collateral.chain.decode(), "crl": collateral.crl.hex()}
    return json.dumps(fields).encode()


def parse_amd(data: bytes) -> AmdCollateral:
    """The file that `dump_amd` writes."""
    raw = parse_json_object(data, Check.EVIDENCE_FORMAT, "AMD collateral", limit=MAX_COLLATERAL_BYTES)
    match raw:
        case {"vek": str(vek), "chain": str(chain), "crl": str(crl)} if len(raw) == 3:
            try:
                return AmdCollateral(vek=bytes.fromhex(vek), chain=chain.encode(), crl=bytes.fromhex(crl))
            except ValueError as exc:
                raise MalformedError(Check.EVIDENCE_FORMAT, f"AMD collateral: not hex ({exc})") from exc
    raise MalformedError(Check.EVIDENCE_FORMAT, "AMD collateral: expected the texts vek, chain and crl")
