"""What NVIDIA publishes beside GPU evidence: reference manifests (RIMs) and OCSP answers. Untrusted until verified."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass

from attestation._json import parse_json_object
from attestation.checks import Check
from attestation.errors import MalformedError

MAX_NVIDIA_COLLATERAL_BYTES = 8 * 1024 * 1024
MAX_RIMS = 64
MAX_OCSP_ANSWERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaCollateral:
    """RIMs as NVIDIA's service gives them (signed XML) and OCSP answers (DER), in any order, for any number of GPUs."""

    rims: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    ocsp_nonce: bytes | None = (
        None  # where the caller asked for the answers itself, with a nonce; never stapled
    )

    @classmethod
    def parse(cls, data: bytes, check: Check = Check.EVIDENCE_FORMAT) -> NvidiaCollateral:
        raw = parse_json_object(data, check, "NVIDIA collateral", limit=MAX_NVIDIA_COLLATERAL_BYTES)
        if set(raw) != {"rims", "ocsp"}:
            wrong = sorted(set(raw) ^ {"rims", "ocsp"})
            raise MalformedError(check, f"NVIDIA collateral: missing or unknown fields {wrong}")
        return cls(
            rims=_blobs(raw["rims"], MAX_RIMS, check, "rims"),
            ocsp=_blobs(raw["ocsp"], MAX_OCSP_ANSWERS, check, "ocsp"),
        )

    def to_json(self) -> bytes:
        encoded = {"rims": self.rims, "ocsp": self.ocsp}
        return json.dumps(
            {k: [b64encode(v).decode() for v in values] for k, values in encoded.items()}
        ).encode()


def _blobs(value: object, limit: int, check: Check, what: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > limit:
        raise MalformedError(check, f"NVIDIA collateral: {what} must be a list of at most {limit}")
    try:
        return tuple(b64decode(item, validate=True) for item in value)
    except (TypeError, ValueError) as exc:
        raise MalformedError(check, f"NVIDIA collateral: {what} must be base64 texts") from exc
