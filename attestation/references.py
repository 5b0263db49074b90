"""Reference values that reviewers signed: which releases of an image are accepted, and which are no longer.

A DSSE envelope (as cosign and in-toto have it) around an in-toto statement. `k` of `n` reviewers named in the policy must
have signed it, each with a key of their own, Ed25519 or P-256. What it names is added to what the policy itself names;
what it revokes is refused, whoever named it. `docs/references.md` has the format.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation._json import parse_json_object
from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.release import Release, Revoked, confined

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from attestation.policy import Policy

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "tag:attested-inference,2026:references#1"
MAX_REFERENCES_BYTES = 4 * 1024 * 1024
MAX_SIGNATURES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """All reference values of one name, at one point of their history: a higher epoch takes the place of all before."""

    name: str
    epoch: int
    issued: int  # Unix seconds
    expires: int
    releases: tuple[Release, ...]
    revoked: tuple[Revoked, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Somebody whose signature counts."""

    name: str
    key: str  # a PEM public key, Ed25519 or P-256


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencesPolicy:
    """`[references]` of a policy file: where signed reference values are, and who must have signed them."""

    file: str  # beside the policy file
    name: str
    reviewers: tuple[Reviewer, ...]
    threshold: int | None = None  # how many of them; all, unless said
    min_epoch: int = 0

    def verify(self, envelope: bytes) -> References:
        """The references in `envelope`, signed by enough reviewers, under this name and not of an older epoch."""
        payload, signatures = parse_envelope(envelope)
        self._verify_signatures(payload, signatures)
        found = _parse_statement(payload)
        if found.name != self.name:
            raise VerificationError(
                Check.REFERENCES_NAME, f"expected references for {self.name!r}, found them for {found.name!r}"
            )
        if found.epoch < self.min_epoch:
            raise VerificationError(
                Check.REFERENCES_EPOCH,
                f"expected epoch {self.min_epoch} or later, found {found.epoch}",
                advice="These references are older than those seen before; get the newest ones from their publisher",
            )
        return found

    def _verify_signatures(self, payload: bytes, signatures: Sequence[bytes]) -> None:
        wanted = len(self.reviewers) if self.threshold is None else self.threshold
        keys = {reviewer.name: _public_key(reviewer) for reviewer in self.reviewers}
        if len(keys) != len(self.reviewers) or len({r.key.strip() for r in self.reviewers}) != len(keys):
            raise MalformedError(Check.POLICY_FORMAT, "[references] names a reviewer or a key twice")
        if not 1 <= wanted <= len(keys):
            raise MalformedError(
                Check.POLICY_FORMAT, f"[references] wants {wanted} signatures of {len(keys)} reviewers"
            )
        message = pae(payload)
        signed = [name for name, key in keys.items() if any(_signed(key, s, message) for s in signatures)]
        if len(signed) < wanted:
            raise VerificationError(
                Check.REFERENCES_SIGNATURE,
                f"expected signatures of {wanted} of {', '.join(keys)}; found those of {', '.join(signed) or 'nobody'}",
                advice="The reference values were altered, or are not reviewed yet; do not use them",
            )


def merge(policy: Policy, references: References) -> Policy:
    """`policy`, with the releases accepted that the references accept, and those refused that they revoke."""
    releases = references.releases
    models = frozenset[bytes]().union(*(r.models for r in releases))
    configs = frozenset[bytes]().union(*(r.configs for r in releases))
    statement = replace(
        policy.statement,
        model_digests=policy.statement.model_digests | models,
        config_digests=policy.statement.config_digests | configs,
    )
    tdx = policy.tdx and replace(
        policy.tdx, measurements=(*policy.tdx.measurements, *(m for r in releases for m in r.tdx))
    )
    snp = policy.snp and replace(
        policy.snp, measurements=policy.snp.measurements.union(*(r.snp for r in releases))
    )
    azure = policy.azure and replace(
        policy.azure, measurements=(*policy.azure.measurements, *(m for r in releases for m in r.vtpm))
    )
    old = policy.release
    expires = datetime.fromtimestamp(references.expires, UTC)
    release = replace(
        old,
        name=references.name,
        epoch=max(old.epoch, references.epoch),
        expires=expires if old.expires is None else min(expires, old.expires),
        revoked=(*old.revoked, *references.revoked),
        confined=(*old.confined, *(c for r in releases for c in confined(r))),
    )
    return replace(
        policy, statement=statement, tdx=tdx, snp=snp, azure=azure, release=release, references=None
    )


def parse_references(data: bytes) -> References:
    """References that nobody has signed yet: the predicate alone, as `image measure` writes it."""
    raw = parse_json_object(data, Check.REFERENCES_FORMAT, "references", limit=MAX_REFERENCES_BYTES)
    return load_table(References, raw, "references", Check.REFERENCES_FORMAT)


def dump_references(references: References) -> bytes:
    """The file that `parse_references` reads."""
    return json.dumps(_plain(references), indent=1).encode() + b"\n"


def parse_envelope(data: bytes) -> tuple[bytes, list[bytes]]:
    """Payload and signatures of a DSSE envelope. Nothing is verified."""
    raw = parse_json_object(data, Check.REFERENCES_FORMAT, "references", limit=MAX_REFERENCES_BYTES)
    signatures = raw.get("signatures")
    if raw.get("payloadType") != PAYLOAD_TYPE or not isinstance(signatures, list):
        raise MalformedError(
            Check.REFERENCES_FORMAT, f"expected a DSSE envelope around {PAYLOAD_TYPE}, found another object"
        )
    if len(signatures) > MAX_SIGNATURES:
        raise MalformedError(Check.REFERENCES_FORMAT, f"more than {MAX_SIGNATURES} signatures")
    return _base64(raw.get("payload")), [
        _base64(s.get("sig") if isinstance(s, dict) else None) for s in signatures
    ]


def dump_envelope(payload: bytes, signatures: Sequence[bytes]) -> bytes:
    """The file that `parse_envelope` reads."""
    encoded = [{"keyid": "", "sig": base64.b64encode(s).decode()} for s in signatures]
    document = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": encoded,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def dump_statement(references: References) -> bytes:
    """The in-toto statement to sign. Each release is a subject, by the digest of its entry."""
    predicate = _plain(references)
    subjects = [
        {"name": entry["id"], "digest": {"sha256": sha256(rfc8785.dumps(entry)).hexdigest()}}
        for entry in predicate["releases"]
    ]
    return rfc8785.dumps(
        {
            "_type": STATEMENT_TYPE,
            "subject": subjects,
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
    )


def sign(payload: bytes, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> bytes:
    """One reviewer's signature for `dump_envelope`."""
    return (
        key.sign(pae(payload))
        if isinstance(key, Ed25519PrivateKey)
        else key.sign(pae(payload), ECDSA(SHA256()))
    )


def pae(payload: bytes) -> bytes:
    """What is signed: DSSE v1's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _parse_statement(payload: bytes) -> References:
    raw = parse_json_object(payload, Check.REFERENCES_FORMAT, "the statement", limit=MAX_REFERENCES_BYTES)
    if raw.get("_type") != STATEMENT_TYPE or raw.get("predicateType") != PREDICATE_TYPE:
        raise MalformedError(
            Check.REFERENCES_FORMAT,
            f"expected {STATEMENT_TYPE} with a predicate {PREDICATE_TYPE}, found {raw.get('predicateType')!r}",
        )
    return load_table(References, raw.get("predicate"), "references", Check.REFERENCES_FORMAT)


def _plain(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case frozenset():
            return sorted(v.hex() for v in value)
        case tuple():
            return [_plain(v) for v in value]
        case str() | int():
            return value
    found = ((spec, getattr(value, spec.name)) for spec in fields(value))
    return {spec.name: _plain(item) for spec, item in found if item != spec.default}


def _public_key(reviewer: Reviewer) -> Ed25519PublicKey | EllipticCurvePublicKey:
    try:
        key = load_pem_public_key(reviewer.key.encode())
    except ValueError:
        key = None
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key
    raise MalformedError(
        Check.POLICY_FORMAT,
        f"references.reviewers: {reviewer.name!r} has no Ed25519 or P-256 public key in PEM",
    )


def _signed(key: Ed25519PublicKey | EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _base64(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        pass
    raise MalformedError(Check.REFERENCES_FORMAT, "payload and signatures are base64")
