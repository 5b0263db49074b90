"""Receipts: what the enclave signs about one exchange, over the exact bytes on the wire.

A receipt is a compact JWS (EdDSA, `typ` attested-receipt+jwt). Its digests are SHA-256(nonce ‖ bytes), where the
nonce is the caller's `Attested-Nonce`: a digest is fresh, and gives nothing away about a guessable prompt.
Plain answers carry it in a header, streams as a last SSE comment, and long ones as checkpoints on the way.
`docs/protocol.md` §4 has the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation._b64 import b64url_decode, b64url_encode
from attestation._json import dump_json, parse_json_object, quoted
from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError

RECEIPT_HEADER = "Attested-Receipt"
NONCE_HEADER = "Attested-Nonce"
COMMENT = b": attested "  # opens the SSE comments that carry a stream's checkpoints and its receipt
TYPE = "attested-receipt+jwt"
MAX_RECEIPT_BYTES = 16 * 1024
MAX_CLOCK_SKEW = 300  # seconds between the enclave's clock and the verifier's
_HEADER_VALUE = {"alg": "EdDSA", "typ": TYPE}
_HEADER = b64url_encode(f'{{"alg":"EdDSA","typ":"{TYPE}"}}'.encode())  # the same, as the gateway writes it


class Outcome(StrEnum):
    """How an exchange ended. Only `complete` says that the answer is whole."""

    COMPLETE = "complete"
    CHECKPOINT = "checkpoint"  # a stream that goes on; the receipt covers every event before it
    ABORTED = "aborted"  # a stream that ended before its end; the receipt covers what was sent
    ERROR = "error"  # an error or refusal, signed like any answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What was asked: the request target as sent, and the digest of the body's bytes."""

    method: str
    path: str
    digest: bytes = field(metadata={"size": 32})
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What was answered: the status, and the digest of every body byte except receipts' own comments."""

    status: int
    digest: bytes = field(metadata={"size": 32})
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    name: str
    digest: bytes = field(metadata={"size": 32})


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None  # of the prompt, where the engine told it


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One exchange as the enclave saw it. Authentic only when it comes from `verify_receipt`."""

    id: str
    counter: int
    time: int  # Unix seconds, by the enclave's clock
    request: Request
    response: Response
    outcome: Outcome
    model: ServedModel
    usage: Usage | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)  # the parameters in effect
    statement: bytes = field(metadata={"size": 32})
    checkpoints: int = 0  # of this stream so far, a checkpoint itself included
    tokens: bytes | None = field(default=None, metadata={"size": 32})  # over token ids, where asked for
    parts: bytes | None = field(default=None, metadata={"size": 32})  # over a chat's parts, where asked for

    def sign(self, key: Ed25519PrivateKey) -> str:
        """The receipt as a compact JWS."""
        return sign_receipt(
            key,
            id=self.id,
            counter=self.counter,
            time=self.time,
            method=self.request.method,
            path=self.request.path,
            asked=(self.request.digest, self.request.length),
            status=self.response.status,
            answered=(self.response.digest, self.response.length),
            outcome=self.outcome,
            model=self.model,
            usage=self.usage,
            sampling=self.sampling,
            statement=self.statement,
            checkpoints=self.checkpoints,
            tokens=self.tokens,
            parts=self.parts,
        )


def sign_receipt(  # noqa: PLR0913  # one argument for each claim: a gateway makes no other object for them
    key: Ed25519PrivateKey,
    *,
    id: str,  # noqa: A002  # as the claim is called
    counter: int,
    time: int,
    method: str,
    path: str,
    asked: tuple[bytes, int],  # digest and length, as of what was answered
    status: int,
    answered: tuple[bytes, int],
    outcome: Outcome,
    model: ServedModel,
    usage: Usage | None,
    sampling: Mapping[str, Any],
    statement: bytes,
    checkpoints: int,
    tokens: bytes | None,
    parts: bytes | None,
) -> str:
    """A compact JWS. Its JSON is written by hand, since every answer has one."""
    counts = "null"
    if usage is not None:
        cached = "null" if usage.cached_tokens is None else usage.cached_tokens
        counts = (
            f'{{"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens}'
            f',"cached_tokens":{cached}}}'
        )
    more = "" if tokens is None else f',"tokens":"{tokens.hex()}"'
    if parts is not None:
        more += f',"parts":"{parts.hex()}"'
    claims = (
        f'{{"id":{quoted(id)},"counter":{counter},"time":{time}'
        f',"request":{{"method":{quoted(method)},"path":{quoted(path)}'
        f',"digest":"{asked[0].hex()}","length":{asked[1]}}}'
        f',"response":{{"status":{status},"digest":"{answered[0].hex()}","length":{answered[1]}}}'
        f',"outcome":"{outcome}","model":{{"name":{quoted(model.name)},"digest":"{model.digest.hex()}"}}'
        f',"usage":{counts},"sampling":{dump_json(sampling)},"statement":"{statement.hex()}"'
        f',"checkpoints":{checkpoints}{more}}}'
    )
    signed = f"{_HEADER}.{b64url_encode(claims.encode())}"
    return f"{signed}.{b64url_encode(key.sign(signed.encode()))}"


class RunningDigest:
    """SHA-256(nonce ‖ bytes) over bytes that arrive in pieces, with their count."""

    __slots__ = ("_hash", "length")

    def __init__(self, nonce: bytes, data: bytes = b"") -> None:
        self._hash = sha256(nonce + data)
        self.length = len(data)

    def update(self, data: bytes) -> None:
        self._hash.update(data)
        self.length += len(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def verify_receipt(token: str, key: bytes) -> Receipt:
    """The receipt in `token`, signed by the Ed25519 public key `key` that stands in a verified statement."""
    if len(token) > MAX_RECEIPT_BYTES:
        raise MalformedError(Check.RECEIPT_FORMAT, f"{len(token)} bytes, the limit is {MAX_RECEIPT_BYTES}")
    header, payload, signature = _segments(token)
    if header != _HEADER_VALUE:
        raise MalformedError(Check.RECEIPT_FORMAT, f"expected an EdDSA {TYPE}, found header {header}")
    try:
        _public_key(key).verify(signature, token.rpartition(".")[0].encode())
    except (InvalidSignature, ValueError) as exc:
        raise VerificationError(
            Check.RECEIPT_SIGNATURE,
            f"not signed by the receipt key {key.hex()[:16]}… of the verified statement",
            advice="The answer or its receipt was altered, or comes from another enclave; do not use it",
        ) from exc
    return _parse_claims(payload)


_public_key = lru_cache(maxsize=64)(Ed25519PublicKey.from_public_bytes)  # a key signs many receipts


def check_receipt(
    receipt: Receipt,
    *,
    statement: bytes,
    model_digest: bytes,
    request: Request,
    status: int,
    response: RunningDigest,
    now: datetime,
) -> None:
    """The authentic `receipt` speaks of exactly this exchange. `statement` is the digest of the verified statement."""
    _equal(Check.RECEIPT_STATEMENT, "the statement digest", statement, receipt.statement)
    if not compare_digest(request.digest, receipt.request.digest) or request != receipt.request:
        raise _mismatch(Check.RECEIPT_REQUEST, "the request", _words(receipt.request), _words(request))
    _equal(Check.RECEIPT_STATUS, "the status", status, receipt.response.status)
    found, signed = response.digest(), receipt.response
    if response.length != signed.length or not compare_digest(found, signed.digest):
        raise _mismatch(
            Check.RECEIPT_RESPONSE,
            "the answer's bytes",
            f"{signed.length} bytes with digest {signed.digest.hex()[:16]}…",
            f"{response.length} bytes with digest {found.hex()[:16]}…",
        )
    _equal(Check.RECEIPT_MODEL, "the model digest", model_digest, receipt.model.digest)
    if abs(now.timestamp() - receipt.time) > MAX_CLOCK_SKEW:
        raise VerificationError(
            Check.RECEIPT_TIME,
            f"signed at {receipt.time} by the enclave's clock, received at {int(now.timestamp())}; "
            f"at most {MAX_CLOCK_SKEW} s apart are accepted",
            advice="Set this machine's clock, or have the operator set the enclave's",
        )


def _segments(token: str) -> tuple[dict[str, Any], bytes, bytes]:
    """Header, payload and signature; one text for one value, so that no character can be changed unseen."""
    parts = token.split(".")
    if len(parts) != 3:
        raise MalformedError(Check.RECEIPT_FORMAT, f"a compact JWS has 3 parts, found {len(parts)}")
    header = _HEADER_VALUE if parts[0] == _HEADER else _read_header(_decoded(parts[0]))
    return header, _decoded(parts[1]), _decoded(parts[2])


def _decoded(segment: str) -> bytes:
    return b64url_decode(segment, Check.RECEIPT_FORMAT, "the receipt")


def _read_header(data: bytes) -> dict[str, Any]:
    return parse_json_object(data, Check.RECEIPT_FORMAT, "the receipt's header", limit=1024)


def _parse_claims(payload: bytes) -> Receipt:
    raw = parse_json_object(payload, Check.RECEIPT_FORMAT, "receipt", limit=MAX_RECEIPT_BYTES)
    return load_table(Receipt, raw, "receipt", Check.RECEIPT_FORMAT)


def _words(request: Request) -> str:
    return f"{request.method} {request.path}, {request.length} bytes with digest {request.digest.hex()[:16]}…"


def _equal(check: Check, what: str, expected: bytes | int, signed: bytes | int) -> None:
    if expected != signed:
        found, said = (v.hex() if isinstance(v, bytes) else str(v) for v in (expected, signed))
        raise _mismatch(check, what, said, found)


def _mismatch(check: Check, what: str, signed: str, found: str) -> VerificationError:
    return VerificationError(
        check,
        f"the receipt is about another exchange: for {what} the enclave signed {signed}; here it is {found}",
        advice="The exchange was altered on the way, or the receipt belongs to another one; do not use the answer",
    )
