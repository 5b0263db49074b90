"""An outcome as an EAT Attestation Result: draft-ietf-rats-ear-04 over AR4SI's trustworthiness vector (draft-ietf-rats-ar4si).

For relying parties that read this format: the verdict is in `ear_status`, the reasons stand in `ear_verifier_claims`, and
what the evidence said in `ear_attester_claims`. A result states what this verifier found; it does not carry the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
)
from attestation.roots import Root, is_vendor

PROFILE = "tag:ietf.org,2026:rats/ear#04"
DEVELOPER = "attested-inference"

# AR4SI §2.3.4, the values used here. A negative one is this verifier's own, in the range kept for that.
GENUINE = APPROVED = OPAQUE = 2
APPROVED_BOOT = 3
VULNERABLE = 32
UNRECOGNIZED_CODE = 33
CONTRAINDICATED = 96
UNRECOGNIZED_HARDWARE = 97
NOT_AUTHENTIC = 99
UNKNOWN_ELEMENTS = 1
FOREIGN_ROOT = -33  # genuine under a root that is no hardware vendor's: a simulator, a test PKI


class Status(StrEnum):
    """AR4SI's tiers, by the names that EAR's JSON has."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """The result for one attester: a CPU's TEE, or one GPU."""

    status: Status
    vector: Mapping[str, int]
    attester_claims: Mapping[str, Any]
    verifier_claims: Mapping[str, Any]


def appraise(
    error: AttestationError | None,
    *,
    roots: Sequence[Root] = (),
    claims: Mapping[str, Any] | None = None,
    measured: bool = True,
) -> Appraisal:
    """The result of one verification: accepted when `error` is None. `measured` is false where no measurement was judged.

    `claims` are plain JSON values, and only authentic ones.
    """
    vector = _vector(error, measured=measured)
    foreign = any(not is_vendor(root) for root in roots)
    if foreign and vector.get("hardware") == GENUINE:
        vector["hardware"] = FOREIGN_ROOT
    status = Status.AFFIRMING if error is None else Status.CONTRAINDICATED
    if isinstance(error, UnavailableError):
        status = Status.NONE
    elif error is None and any(_warns(value) for value in vector.values()):
        status = Status.WARNING
    verifier: dict[str, Any] = {"vendor-root": bool(roots) and not foreign, "measurements-judged": measured}
    if error is not None:
        verifier |= {"check": str(error.check), "detail": error.detail}
    if isinstance(error, PolicyError):
        verifier["violations"] = [str(v) for v in error.violations]
    return Appraisal(status=status, vector=vector, attester_claims=claims or {}, verifier_claims=verifier)


def make_ear(
    appraisals: Mapping[str, Appraisal],
    *,
    build: str,
    issued: datetime,
    expires: datetime | None = None,
    nonce: bytes | None = None,
) -> dict[str, Any]:
    """The claims set, unsigned. `expires` is the end of the collateral that the result rests on."""
    ear: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": int(issued.timestamp()),
        "ear_verifier_id": {"developer": DEVELOPER, "build": build},
        "submods": {name: _submodule(appraisal) for name, appraisal in appraisals.items()},
    }
    if expires is not None:
        ear["exp"] = int(expires.timestamp())
    if nonce:
        ear["eat_nonce"] = b64url_encode(nonce)
    return ear


SigningKey = Ed25519PrivateKey | EllipticCurvePrivateKey


def load_signing_key(pem: bytes) -> SigningKey:
    """An Ed25519 or P-256 private key from unencrypted PEM; anything else is a ValueError."""
    try:
        key = load_pem_private_key(pem, None)
    except (TypeError, UnsupportedAlgorithm) as exc:
        raise ValueError(str(exc)) from exc
    match key:
        case Ed25519PrivateKey() | EllipticCurvePrivateKey(curve=SECP256R1()):
            return key
    raise ValueError("the key is neither Ed25519 nor P-256")


def sign_ear(ear: Mapping[str, Any], key: SigningKey) -> str:
    """A compact JWS: EdDSA with an Ed25519 key, ES256 with a P-256 key."""
    return jwt.encode(dict(ear), key, algorithm="EdDSA" if isinstance(key, Ed25519PrivateKey) else "ES256")


def _submodule(appraisal: Appraisal) -> dict[str, Any]:
    submodule: dict[str, Any] = {"ear_status": str(appraisal.status)}
    if appraisal.vector:
        submodule["ear_trustworthiness_vector"] = dict(appraisal.vector)
    if appraisal.attester_claims:
        submodule["ear_attester_claims"] = dict(appraisal.attester_claims)
    submodule["ear_verifier_claims"] = dict(appraisal.verifier_claims)
    return submodule


def _vector(error: AttestationError | None, *, measured: bool) -> dict[str, int]:
    accepted = {
        "instance-identity": GENUINE,
        "configuration": APPROVED,
        "executables": APPROVED_BOOT if measured else UNRECOGNIZED_CODE,
        "hardware": GENUINE,
        "runtime-opaque": OPAQUE,
    }
    match error:
        case None:
            return accepted
        case PolicyError():
            for violation in error.violations:
                name, value = _aspect(violation.check)
                accepted[name] = max(accepted[name], value)
            return accepted
        case VerificationError() if "revoked" in error.check or error.check is Check.GPU_HOLD:
            return {"instance-identity": CONTRAINDICATED, "hardware": CONTRAINDICATED}
        case VerificationError() if error.check in _UNKNOWN_TCB:
            return {"hardware": UNRECOGNIZED_HARDWARE}
        case VerificationError() if error.check is Check.GPU_MEASUREMENT:
            return {"hardware": CONTRAINDICATED}
        case VerificationError():
            return dict.fromkeys(accepted, NOT_AUTHENTIC)
        case MalformedError():
            return {"hardware": UNKNOWN_ELEMENTS}
    return {}


_UNKNOWN_TCB = {Check.TDX_TCB_LEVEL, Check.TDX_MODULE, Check.TDX_MODULE_LEVEL, Check.TDX_QE_LEVEL}
_OLD = ("tcb", "advisories", "firmware", "provisional", "mitigations", "driver", "vbios", "milan")
_CODE = (
    "measurement",
    "model",
    "mr_config_id",
    "mr_owner",
    "id_key",
    "author_key",
    "guest_svn",
    "image_id",
    "pcr",
)
_WHO = ("platform", "chip", "signer", "arch", "switch", "duplicate", "gpu")


def _aspect(check: Check) -> tuple[str, int]:
    """Which aspect of trustworthiness a violation speaks of; what fits none better is configuration."""
    name = check.partition(".")[2]
    if name == "debug":
        return "runtime-opaque", CONTRAINDICATED
    for aspect, value, words in (
        ("hardware", VULNERABLE, _OLD),
        ("executables", UNRECOGNIZED_CODE, _CODE),
        ("instance-identity", UNRECOGNIZED_HARDWARE, _WHO),
    ):
        if name.startswith(words):
            return aspect, value
    return "configuration", CONTRAINDICATED


def _warns(value: int) -> bool:
    return VULNERABLE <= value < CONTRAINDICATED or -96 <= value <= -33
