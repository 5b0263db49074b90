"""Bundles: one file from which anybody can verify exchanges again, offline and years later.

It holds what one enclave was asked and answered (or only the receipts, whose digests stand for the bytes), and the
evidence that its receipt key rests on, collateral included. `docs/protocol.md` §9 has the bytes. Nothing in a bundle is
believed before `audit.py` has verified it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import parse_json_object
from attestation.binding import NONCE_BYTES
from attestation.checks import Check
from attestation.errors import MalformedError

VERSION = 1
PURPOSE = "attested-inference/bundle"
MAX_BUNDLE_BYTES = 64 * 1024 * 1024
decode_again = lru_cache(maxsize=2)(b64url_decode)  # for evidence: the files of a folder mostly have the same


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedExchange:
    """One receipt as it was received, the request's nonce, and the bytes where they were saved too."""

    receipt: str
    nonce: bytes
    request: bytes | None = field(default=None, repr=False)
    response: bytes | None = field(default=None, repr=False)  # with or without the receipt's own comment
    log: bytes | None = field(
        default=None, repr=False
    )  # the proof that the receipt is logged (c2sp.org/tlog-proof@v1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """Exchanges with one enclave. Untrusted until audited."""

    evidence: bytes = field(repr=False)  # the evidence document
    nonce: bytes  # that the evidence was asked with
    exchanges: tuple[SavedExchange, ...]


def dump_bundle(bundle: Bundle) -> bytes:
    """The file that `parse_bundle` reads."""
    document = {
        "v": VERSION,
        "purpose": PURPOSE,
        "evidence": b64url_encode(bundle.evidence),
        "nonce": b64url_encode(bundle.nonce),
        "exchanges": [_dump_exchange(exchange) for exchange in bundle.exchanges],
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle. Judges nothing: the evidence and the receipts in it are read when they are verified."""
    bundle, exchanges = open_bundle(
        parse_json_object(data, Check.BUNDLE_FORMAT, "bundle", limit=MAX_BUNDLE_BYTES)
    )
    return replace(bundle, exchanges=tuple(map(parse_exchange, exchanges)))


def open_bundle(raw: Mapping[str, Any]) -> tuple[Bundle, list[object]]:
    """The bundle in a JSON object, still without its exchanges: these are for `parse_exchange`, one by one."""
    parse_members(raw, "the bundle", {"v", "purpose", "evidence", "nonce", "exchanges"})
    if type(raw["v"]) is not int or raw["v"] != VERSION or raw["purpose"] != PURPOSE:
        raise MalformedError(
            Check.BUNDLE_FORMAT,
            f"expected version {VERSION} for {PURPOSE!r}, found version {raw['v']!r} for {raw['purpose']!r}",
        )
    exchanges = raw["exchanges"]
    if not isinstance(exchanges, list) or not exchanges:
        raise MalformedError(Check.BUNDLE_FORMAT, "exchanges must be a list with at least one exchange")
    evidence = parse_bytes(raw, "evidence", decode=decode_again)
    return Bundle(evidence=evidence, nonce=parse_bytes(raw, "nonce", NONCE_BYTES), exchanges=()), exchanges


def _dump_exchange(exchange: SavedExchange) -> dict[str, str]:
    table = {"receipt": exchange.receipt, "nonce": b64url_encode(exchange.nonce)}
    if exchange.request is not None:
        table["request"] = b64url_encode(exchange.request)
    if exchange.response is not None:
        table["response"] = b64url_encode(exchange.response)
    if exchange.log is not None:
        table["log"] = b64url_encode(exchange.log)
    return table


def parse_exchange(raw: object) -> SavedExchange:
    """One exchange of a bundle."""
    if not isinstance(raw, dict):
        raise MalformedError(Check.BUNDLE_FORMAT, "an exchange must be an object")
    parse_members(raw, "an exchange", {"receipt", "nonce"}, {"request", "response", "log"})
    receipt = raw["receipt"]
    if not isinstance(receipt, str) or not receipt.isascii():
        raise MalformedError(Check.BUNDLE_FORMAT, "receipt must be a compact JWS")
    return SavedExchange(
        receipt=receipt,
        nonce=parse_bytes(raw, "nonce", NONCE_BYTES),
        request=parse_bytes(raw, "request") if "request" in raw else None,
        response=parse_bytes(raw, "response") if "response" in raw else None,
        log=parse_bytes(raw, "log") if "log" in raw else None,
    )


def parse_members(
    table: Mapping[str, Any],
    what: str,
    required: set[str],
    optional: frozenset[str] | set[str] = frozenset(),
    *,
    check: Check = Check.BUNDLE_FORMAT,
) -> None:
    """All of the required members are there, and none that is not known."""
    if not required <= set(table) <= required | optional:
        wrong = sorted((required - set(table)) | (set(table) - required - optional))
        raise MalformedError(check, f"{what}: missing or unknown members {wrong}")


def parse_bytes(
    table: Mapping[str, Any],
    name: str,
    size: int | None = None,
    *,
    check: Check = Check.BUNDLE_FORMAT,
    decode: Callable[[str, Check, str], bytes] = b64url_decode,
) -> bytes:
    """The bytes of one member, in base64url; of exactly `size` if that is given."""
    value = table[name]
    if not isinstance(value, str):
        raise MalformedError(check, f"{name} must be base64url text")
    data = decode(value, check, name)
    if size is not None and len(data) != size:
        raise MalformedError(check, f"{name} has {size} bytes, found {len(data)}")
    return data
