"""Receipts, checked as bytes arrive and without I/O: nothing that an answer's receipt contradicts is taken as whole.

`Exchange` knows what was asked, and of whom. `PlainCheck` gives out a plain answer once its receipt has been verified,
and nothing before. `StreamCheck` gives out events as they come, and holds back those at which a client stops reading
(`[DONE]`, errors, what cannot be read) until the receipt at the stream's very end has been verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.receipt import (
    COMMENT,
    NONCE_HEADER,
    RECEIPT_HEADER,
    Outcome,
    Receipt,
    Request,
    RunningDigest,
    check_receipt,
    verify_receipt,
)
from attestation.verdict import Verdict

EVENT_STREAM = "text/event-stream"
MAX_HELD_BYTES = 16 * 1024 * 1024  # of a stream: an event that does not end, or events after the terminal one
_END = b"\n\n"
_DO_NOT_USE = "The answer was altered on the way, or belongs to another request; do not use it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as it was sent, and the verdict under which it was sent."""

    verdict: Verdict
    nonce: bytes
    method: str
    path: str
    body: bytes

    def check_nonce(self, answered: str | None) -> None:
        """The answer names this request's nonce."""
        if answered != b64url_encode(self.nonce):
            raise VerificationError(
                Check.RECEIPT_REQUEST,
                f"the answer is for the nonce {answered or '(none)'}, the request had {b64url_encode(self.nonce)}",
                advice=_DO_NOT_USE,
            )

    def check(self, token: str, status: int, response: RunningDigest, now: datetime) -> Receipt:
        """The receipt in `token`, when the attested enclave signed it about exactly this exchange."""
        receipt = verify_receipt(token, self.verdict.statement.keys.receipt_ed25519)
        # An enclave that refused before it had read everything signs what it had read (docs/protocol.md §4).
        body = self.body[: receipt.request.length] if receipt.outcome is Outcome.ERROR else self.body
        digest = RunningDigest(self.nonce, body)
        check_receipt(
            receipt,
            statement=self.verdict.statement_digest,
            model_digest=self.verdict.statement.model.digest,
            request=Request(method=self.method, path=self.path, digest=digest.digest(), length=digest.length),
            status=status,
            response=response,
            now=now,
        )
        if (receipt.outcome is Outcome.ERROR) != (status >= 400):
            raise _outcome(receipt, f"the status is {status}")
        return receipt


class PlainCheck:
    """A plain answer: all of it, or an error."""

    def __init__(self, exchange: Exchange, status: int, headers: Mapping[str, str]) -> None:
        token = headers.get(RECEIPT_HEADER)
        if token is None:
            raise _missing(f"the answer (status {status}) has no {RECEIPT_HEADER} header")
        exchange.check_nonce(headers.get(NONCE_HEADER))
        self._exchange, self._status, self._token = exchange, status, token
        self._body = bytearray()
        self.receipt: Receipt | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the body; they are given out by `finish`."""
        self._body += data
        return b""

    def finish(self, now: datetime) -> bytes:
        """The verified body."""
        body = bytes(self._body)
        digest = RunningDigest(self._exchange.nonce, body)
        receipt = self._exchange.check(self._token, self._status, digest, now)
        if receipt.outcome is Outcome.ABORTED:
            raise _outcome(receipt, "the answer is plain")
        self.receipt = receipt
        return body

    def conclude(self) -> None:
        """Nothing is left to say about a plain answer after `finish`."""


class StreamCheck:
    """A stream of events: give out each when it is whole, and the end of the stream when it is proven.

    Until then a stream is unproven, and a consumer that stops early has no receipt. A stream may be cut anywhere into reads.
    """

    def __init__(self, exchange: Exchange, status: int, headers: Mapping[str, str]) -> None:
        exchange.check_nonce(headers.get(NONCE_HEADER))
        self._exchange, self._status = exchange, status
        self._digest = RunningDigest(exchange.nonce)
        self._tail = b""  # the start of an event that is still to come
        self._held = bytearray()  # from the first terminal event on
        self._token: str | None = None
        self._aborted: VerificationError | None = None
        self.receipt: Receipt | None = None

    def feed(self, data: bytes) -> bytes:
        """Take the bytes of one read; give out the events that are whole and may go out before the receipt."""
        if self._tail:
            data = self._tail + data
        cut = data.rfind(_END) + len(_END)
        whole, self._tail = (data[:cut], data[cut:]) if cut >= len(_END) else (b"", data)
        if len(self._tail) + len(self._held) > MAX_HELD_BYTES:
            raise MalformedError(Check.STREAM_TRUNCATED, f"no end within {MAX_HELD_BYTES} bytes")
        released, start = [], 0
        while (end := whole.find(_END, start) + len(_END)) >= len(_END):
            released.append(self._take(whole[start:end]))
            start = end
        self._tail = whole[start:] + self._tail
        return b"".join(released)

    def finish(self, now: datetime) -> bytes:
        """The stream has ended: verify its receipt, and give out what was held back."""
        if self._token is None:
            where = "inside an event" if self._tail else "at the end of an event"
            raise self.truncated(f"{where}, after {self._digest.length + len(self._tail)} bytes")
        if self._tail:
            raise _after_receipt()
        self.receipt = receipt = self._exchange.check(self._token, self._status, self._digest, now)
        if receipt.outcome is Outcome.COMPLETE:
            return bytes(self._held)
        self._aborted = _outcome(receipt, "the stream was cut short by the enclave")
        error = bytes(self._held[: self._held.find(_END) + len(_END)])
        if not (_value(error) or {}).get("error"):
            raise self._aborted
        return error

    def conclude(self) -> None:
        """After everything was given out: raise if the enclave says that the stream was cut short."""
        if self._aborted is not None:
            raise self._aborted

    @staticmethod
    def truncated(how: str) -> VerificationError:
        return VerificationError(
            Check.STREAM_TRUNCATED,
            f"the stream ended without a receipt: {how}",
            advice="The connection was cut, or the end of the answer was taken away; ask again",
        )

    def _take(self, event: bytes) -> bytes:
        if self._token is not None:
            raise _after_receipt()
        text = event.lstrip(b"\n")
        if text.startswith(COMMENT):
            try:
                self._token = text[len(COMMENT) : -len(_END)].decode("ascii")
            except UnicodeDecodeError as exc:
                raise MalformedError(Check.RECEIPT_FORMAT, "the receipt is not ASCII") from exc
            event = event[: len(event) - len(text)]
        self._digest.update(event)
        if not self._held and not _stops_a_client(event):
            return event
        self._held += event
        return b""


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is proven of one answer; stands in `response.extensions["attestation"]`."""

    verdict: Verdict
    check: PlainCheck | StreamCheck | None = field(default=None, repr=False)

    @property
    def receipt(self) -> Receipt | None:
        """The verified receipt; None for a stream that has not been read to its end, and for routes without receipts."""
        return self.check.receipt if self.check is not None else None


def check_answer(exchange: Exchange, status: int, headers: Mapping[str, str]) -> PlainCheck | StreamCheck:
    """The check for an answer with these headers."""
    coding = headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise VerificationError(
            Check.RECEIPT_RESPONSE,
            f"the answer claims the content coding {coding!r}, which the enclave never uses",
            advice=_DO_NOT_USE,
        )
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return (StreamCheck if kind == EVENT_STREAM else PlainCheck)(exchange, status, headers)


def _stops_a_client(event: bytes) -> bool:
    """Whether a client may stop reading at this event: at the end, at an error, at what it cannot read."""
    if not any(line.startswith((b"data", b"\xef\xbb\xbf")) for line in event.splitlines()):
        return False  # nothing that a client hears of
    value = _value(event)
    return value is None or bool(value.get("error"))


def _value(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event carries; None when it carries anything else."""
    data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _missing(detail: str) -> VerificationError:
    return VerificationError(
        Check.RECEIPT_MISSING,
        detail,
        advice="What answered is not the gateway in the enclave, or the receipt was taken away; do not use the answer",
    )


def _outcome(receipt: Receipt, but: str) -> VerificationError:
    return VerificationError(
        Check.RECEIPT_OUTCOME,
        f"the enclave signed the outcome {receipt.outcome!s}: {but}",
        advice=_DO_NOT_USE,
    )


def _after_receipt() -> VerificationError:
    return VerificationError(
        Check.RECEIPT_RESPONSE,
        "bytes follow the receipt, which is the last thing on the wire",
        advice=_DO_NOT_USE,
    )
