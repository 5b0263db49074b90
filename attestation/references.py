"""Reference values that reviewers signed: which releases of an image are accepted, and which are no longer.

A DSSE envelope (as cosign and in-toto have it, or in a Sigstore bundle) around an in-toto statement, or the statement
alone, where signatures are files of their own; who must have signed it is in `attestation.reviewers`. What it names is
added to what the policy itself names; what it revokes is refused, whoever named it. `docs/references.md` has the format.
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
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from attestation._json import parse_json_object
from attestation._table import load_table
from attestation.checks import Check
from attestation.dsse import PAYLOAD_TYPE, STATEMENT_TYPE, pae
from attestation.errors import MalformedError
from attestation.release import Release, Revoked, limited

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from attestation.policy import Policy

PREDICATE_TYPE = "tag:attested-inference,2026:references#1"
MAX_REFERENCES_BYTES = 4 * 1024 * 1024
MAX_SIGNATURES = 64
MAX_TIME = 253402300799  # the end of the year 9999
MAX_EPOCH = 2**53 - 1  # what any JSON holds


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """All reference values of one name, at one point of their history: a higher epoch takes the place of all before."""

    name: str
    epoch: int
    issued: int  # Unix seconds
    expires: int
    releases: tuple[Release, ...]
    revoked: tuple[Revoked, ...] = ()


def merge(policy: Policy, references: References) -> Policy:
    """`policy`, with the releases accepted that the references accept, each as a whole, and those refused that they revoke.

    What a client remembers is the references' own name and epoch.
    """
    old = policy.release
    expires = datetime.fromtimestamp(references.expires, UTC)
    release = replace(
        old,
        name=references.name,
        epoch=references.epoch,
        expires=expires if old.expires is None else min(expires, old.expires),
        revoked=(*old.revoked, *references.revoked),
        accepted=(*old.accepted, *map(limited, references.releases)),
    )
    return replace(policy, release=release, references=None)


def parse_references(data: bytes) -> References:
    """References that nobody has signed yet: the predicate alone, as `image measure` writes it."""
    raw = parse_json_object(data, Check.REFERENCES_FORMAT, "references", limit=MAX_REFERENCES_BYTES)
    return _load(raw)


def read_references(data: bytes) -> References:
    """References from any file: the predicate, the statement, or an envelope, of which no signature is verified."""
    raw = parse_json_object(data, Check.REFERENCES_FORMAT, "references", limit=MAX_REFERENCES_BYTES)
    if {"payloadType", "dsseEnvelope", "_type"} & set(raw):
        return parse_statement(parse_envelope(data)[0])
    return _load(raw)


def dump_references(references: References) -> bytes:
    """The file that `parse_references` reads."""
    return json.dumps(_plain(references), indent=1).encode() + b"\n"


def parse_envelope(data: bytes) -> tuple[bytes, list[bytes]]:
    """Payload and signatures of a DSSE envelope, or of the one in a Sigstore bundle. Nothing is verified.

    A statement without an envelope is a payload that nobody has signed in this file.
    """
    raw = parse_json_object(data, Check.REFERENCES_FORMAT, "references", limit=MAX_REFERENCES_BYTES)
    if raw.get("_type") == STATEMENT_TYPE:
        return data, []
    inner = raw.get("dsseEnvelope")
    raw = inner if isinstance(inner, dict) else raw
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
        {"name": entry["id"], "digest": {"sha256": sha256(_canonical(entry)).hexdigest()}}
        for entry in predicate["releases"]
    ]
    return _canonical(
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


def parse_statement(payload: bytes) -> References:
    """The references in the payload of an envelope. Whoever has not verified its signatures knows nothing yet."""
    raw = parse_json_object(payload, Check.REFERENCES_FORMAT, "the statement", limit=MAX_REFERENCES_BYTES)
    if raw.get("_type") != STATEMENT_TYPE or raw.get("predicateType") != PREDICATE_TYPE:
        raise MalformedError(
            Check.REFERENCES_FORMAT,
            f"expected {STATEMENT_TYPE} with a predicate {PREDICATE_TYPE}, found {raw.get('predicateType')!r}",
        )
    return _load(raw.get("predicate"))


def _load(predicate: object) -> References:
    found = load_table(References, predicate, "references", Check.REFERENCES_FORMAT)
    times = (found.issued, found.expires, *(r.until for r in found.releases if r.until is not None))
    if not all(0 <= time <= MAX_TIME for time in times):
        raise MalformedError(Check.REFERENCES_FORMAT, f"times are Unix seconds from 0 to {MAX_TIME}")
    if not 0 <= found.epoch <= MAX_EPOCH:
        raise MalformedError(Check.REFERENCES_FORMAT, f"an epoch is a number from 0 to {MAX_EPOCH}")
    ids = [release.id for release in found.releases] + [revoked.id for revoked in found.revoked]
    if len(set(ids)) != len(ids):
        raise MalformedError(Check.REFERENCES_FORMAT, "two releases have the same id")
    return found


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


def _canonical(value: Any) -> bytes:
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as exc:
        raise MalformedError(
            Check.REFERENCES_FORMAT, f"a number or a text that no JSON can hold ({exc})"
        ) from exc


def _base64(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        pass
    raise MalformedError(Check.REFERENCES_FORMAT, "payload and signatures are base64")
