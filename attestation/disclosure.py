"""Disclosures: some messages and choices of one saved chat, shown to somebody who is to see no more of it.

The file holds the receipt, the evidence that its key rests on, each shown part with its salt, and of every other part the
salted digest alone. It does not hold the request's nonce, from which all salts are made; so nobody can try out what a hidden
part may have said. `docs/protocol.md` §10 has the bytes. Nothing in a disclosure is believed before it was audited.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from attestation._b64 import b64url_encode
from attestation._json import parse_json_object
from attestation.audit import Audited, Auditor
from attestation.binding import NONCE_BYTES, parse_statement
from attestation.bundle import Bundle, SavedExchange, decode_again, parse_bytes, parse_members
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.evidence import parse_evidence
from attestation.parts import SALT_BYTES, messages_of, part_digest, part_salt, parts_digest, texts_of
from attestation.receipt import Receipt, verify_receipt

VERSION = 1
PURPOSE = "attested-inference/disclosure"
MAX_DISCLOSURE_BYTES = 64 * 1024 * 1024
_DIGEST_BYTES = 32
_FORMAT = Check.DISCLOSURE_FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """A part of which only the salted digest is told."""

    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A part that is told: a message as JSON, or the text of a choice."""

    salt: bytes = field(repr=False)
    value: bytes = field(repr=False)

    @property
    def digest(self) -> bytes:
        return part_digest(self.salt, self.value)


Part = Hidden | Shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Disclosure:
    """One chat's receipt with all of its parts, shown or hidden. Untrusted until audited."""

    evidence: bytes = field(repr=False)  # the evidence document
    nonce: bytes  # that the evidence was asked with; the request's nonce is nowhere
    receipt: str
    messages: tuple[Part, ...]
    choices: tuple[Part, ...]
    log: bytes | None = field(default=None, repr=False)  # the proof that the receipt is logged


def disclose(
    bundle: Bundle, exchange: SavedExchange, *, messages: Collection[int] = (), choices: Collection[int] = ()
) -> Disclosure:
    """A disclosure of these messages and choices of `exchange`, which is one of `bundle` and has its bytes.

    The evidence is not judged here. LookupError where there is no such part.
    """
    receipt = _authentic(bundle, exchange.receipt)
    if exchange.request is None or exchange.response is None:
        raise _unproven("the exchange was saved without its bytes, so none of them can be shown")
    made = Disclosure(
        evidence=bundle.evidence,
        nonce=bundle.nonce,
        receipt=exchange.receipt,
        messages=_parts(exchange.nonce, "message", messages_of(exchange.request), messages),
        choices=_parts(exchange.nonce, "choice", texts_of(exchange.response), choices),
        log=exchange.log,
    )
    check_parts(receipt, made)
    return made


def audit_disclosure(auditor: Auditor, disclosure: Disclosure) -> Audited:
    """The receipt holds on the auditor's terms, and every shown part is what the enclave saw or said; or the first error."""
    audited = auditor.audit(*as_bundle(disclosure))
    check_parts(audited.receipt, disclosure)
    return audited


def as_bundle(disclosure: Disclosure) -> tuple[Bundle, SavedExchange]:
    """The receipt and its evidence, as a bundle has them, with no bytes."""
    exchange = SavedExchange(receipt=disclosure.receipt, nonce=b"", log=disclosure.log)
    return Bundle(evidence=disclosure.evidence, nonce=disclosure.nonce, exchanges=(exchange,)), exchange


def check_parts(receipt: Receipt, disclosure: Disclosure) -> None:
    """The authentic `receipt` commits to exactly these parts, in this order."""
    if receipt.parts is None:
        raise _unproven(
            "the receipt commits to no parts: its request did not ask for that, or was not answered whole"
        )
    digests = ([part.digest for part in parts] for parts in (disclosure.messages, disclosure.choices))
    found = parts_digest(*digests)
    if found != receipt.parts:
        raise _unproven(
            f"for all parts the enclave signed the digest {receipt.parts.hex()[:16]}…; those that are here have {found.hex()[:16]}…"
        )


def dump_disclosure(disclosure: Disclosure) -> bytes:
    """The file that `parse_disclosure` reads."""
    document = {
        "v": VERSION,
        "purpose": PURPOSE,
        "evidence": b64url_encode(disclosure.evidence),
        "nonce": b64url_encode(disclosure.nonce),
        "receipt": disclosure.receipt,
        "messages": [_dump_part(part) for part in disclosure.messages],
        "choices": [_dump_part(part) for part in disclosure.choices],
        **({} if disclosure.log is None else {"log": b64url_encode(disclosure.log)}),
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def parse_disclosure(data: bytes) -> Disclosure:
    """Read a disclosure. Judges nothing: evidence and receipt in it are read when they are verified."""
    return load_disclosure(parse_json_object(data, _FORMAT, "disclosure", limit=MAX_DISCLOSURE_BYTES))


def load_disclosure(raw: dict[str, Any]) -> Disclosure:
    """The same, of the file's JSON object."""
    members = {"v", "purpose", "evidence", "nonce", "receipt", "messages", "choices"}
    parse_members(raw, "the disclosure", members, {"log"}, check=_FORMAT)
    if type(raw["v"]) is not int or raw["v"] != VERSION or raw["purpose"] != PURPOSE:
        raise MalformedError(
            _FORMAT,
            f"expected version {VERSION} for {PURPOSE!r}, found version {raw['v']!r} for {raw['purpose']!r}",
        )
    receipt = raw["receipt"]
    if not isinstance(receipt, str) or not receipt.isascii():
        raise MalformedError(_FORMAT, "receipt must be a compact JWS")
    return Disclosure(
        evidence=parse_bytes(raw, "evidence", check=_FORMAT, decode=decode_again),
        nonce=parse_bytes(raw, "nonce", NONCE_BYTES, check=_FORMAT),
        receipt=receipt,
        messages=_load_parts(raw["messages"]),
        choices=_load_parts(raw["choices"]),
        log=parse_bytes(raw, "log", check=_FORMAT) if "log" in raw else None,
    )


def _parts(nonce: bytes, kind: str, values: Sequence[bytes], shown: Collection[int]) -> tuple[Part, ...]:
    if missing := set(shown) - set(range(len(values))):
        raise LookupError(f"there is no {kind} {min(missing)}: there are {len(values)}, counted from 0")
    parts = (Shown(salt=part_salt(nonce, kind, i), value=value) for i, value in enumerate(values))
    return tuple(part if i in shown else Hidden(digest=part.digest) for i, part in enumerate(parts))


def _dump_part(part: Part) -> dict[str, str]:
    match part:
        case Hidden():
            return {"digest": b64url_encode(part.digest)}
        case Shown():
            return {"salt": b64url_encode(part.salt), "value": b64url_encode(part.value)}


def _load_parts(raw: object) -> tuple[Part, ...]:
    if not isinstance(raw, list):
        raise MalformedError(_FORMAT, "messages and choices must be lists")
    return tuple(map(_load_part, raw))


def _load_part(raw: object) -> Part:
    if not isinstance(raw, dict):
        raise MalformedError(_FORMAT, "a part must be an object")
    if "digest" in raw:
        parse_members(raw, "a hidden part", {"digest"}, check=_FORMAT)
        return Hidden(digest=parse_bytes(raw, "digest", _DIGEST_BYTES, check=_FORMAT))
    parse_members(raw, "a shown part", {"salt", "value"}, check=_FORMAT)
    salt = parse_bytes(raw, "salt", SALT_BYTES, check=_FORMAT)
    return Shown(salt=salt, value=parse_bytes(raw, "value", check=_FORMAT))


def _authentic(bundle: Bundle, receipt: str) -> Receipt:
    statement = parse_statement(parse_evidence(bundle.evidence).statement)
    return verify_receipt(receipt, statement.keys.receipt_ed25519)


def _unproven(detail: str) -> VerificationError:
    return VerificationError(
        Check.RECEIPT_PARTS,
        detail,
        advice="Nothing is proven of the parts that are shown; do not rely on them",
    )
