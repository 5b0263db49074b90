"""Receipts, checked as bytes arrive and without I/O: nothing that an answer's receipt contradicts is taken as whole.

`Exchange` knows what was asked, and of whom. `PlainCheck` gives out a plain answer once its receipt has been verified,
and nothing before. `StreamCheck` gives out events as they come, or once they are proven (`Verify`): each checkpoint
proves everything before it, and one that contradicts it raises at once. Events at which a client stops reading (`[DONE]`,
errors, what cannot be read) are always held back until the receipt at the stream's very end has been verified.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Any

from attestation._b64 import b64url_encode
from attestation.bundle import Bundle, SavedExchange, dump_bundle
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.evidence import dump_evidence
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
_json: Any = json.JSONDecoder()
_scan = _json.scan_once  # what json.loads does around it costs more than reading an event
_DO_NOT_USE = "The answer was altered on the way, or belongs to another request; do not use it"


class Verify(StrEnum):
    """When a stream's events are given out."""

    AS_YOU_READ = "as_you_read"  # when they come; what follows the last checkpoint is provisional
    BEFORE_USE = "before_use"  # when a checkpoint or the receipt at the end has proven them


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

    def authentic(self, token: str) -> Receipt:
        """The receipt in `token`, when the attested enclave signed it, whatever it is about."""
        return verify_receipt(token, self.verdict.statement.keys.receipt_ed25519)

    def check(self, receipt: Receipt, status: int, response: RunningDigest, now: datetime) -> Receipt:
        """The authentic `receipt` is about exactly this exchange."""
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

    def saved(self, token: str, response: bytes) -> SavedExchange:
        """What an auditor needs of this exchange."""
        return SavedExchange(receipt=token, nonce=self.nonce, request=self.body, response=response)


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

    def feed(self, data: bytes, _now: datetime | None = None) -> Iterable[bytes]:
        """Take bytes of the body; they are given out by `finish`."""
        self._body += data
        return ()

    def finish(self, now: datetime) -> bytes:
        """The verified body."""
        body = bytes(self._body)
        digest = RunningDigest(self._exchange.nonce, body)
        receipt = self._exchange.authentic(self._token)
        self._exchange.check(receipt, self._status, digest, now)
        if receipt.outcome in {Outcome.ABORTED, Outcome.CHECKPOINT}:
            raise _outcome(receipt, "the answer is plain")
        self.receipt = receipt
        return body

    def conclude(self) -> None:
        """Nothing is left to say about a plain answer after `finish`."""

    def saved(self) -> SavedExchange:
        """The exchange as an auditor needs it."""
        return self._exchange.saved(self._token, bytes(self._body))


class StreamCheck:
    """A stream of events: give out each when it is whole, or proven, and the end of the stream when it is proven.

    A consumer that stops early has no receipt; what it got is proven up to `proven`. A stream may be cut anywhere into reads.
    """

    def __init__(
        self,
        exchange: Exchange,
        status: int,
        headers: Mapping[str, str],
        verify: Verify = Verify.AS_YOU_READ,
    ) -> None:
        exchange.check_nonce(headers.get(NONCE_HEADER))
        self._exchange, self._status = exchange, status
        self._digest = RunningDigest(exchange.nonce)
        self._tail = b""  # the start of an event that is still to come
        self._waiting = bytearray()  # unproven events that wait for a checkpoint, or for the end of a read
        self._held = bytearray()  # from the first terminal event on
        self._kept: list[bytes] = []  # all that the receipt covers, for `saved`
        self._token = ""
        self._verify = verify
        self._checkpoints, self._id = 0, ""
        self._end: Receipt | None = None
        self._aborted: VerificationError | None = None
        self.receipt: Receipt | None = None
        self.given = 0  # bytes of events that were given out
        self.proven = 0  # bytes of events, from the first one on, that the enclave has signed

    def passes(self, data: bytes) -> bool:
        """Take one read if it is to be given out as it is, as nearly every one is; any other is for `feed`."""
        waits = self._tail or self._waiting or self._held or self._end or self._verify is Verify.BEFORE_USE
        if waits or not _is_usual(data):
            return False
        self._digest.update(data)
        self._kept.append(data)
        self.given += len(data)
        return True

    def feed(self, data: bytes, now: datetime) -> Iterable[bytes]:
        """Take the bytes of one read; the events that may go out before the receipt, the proven ones apart."""
        if self.passes(data):
            return (data,)
        if self._tail:
            data = self._tail + data
        cut = data.rfind(_END) + len(_END)
        whole, self._tail = (data[:cut], data[cut:]) if cut >= len(_END) else (b"", data)
        if len(self._tail) + len(self._held) + len(self._waiting) > MAX_HELD_BYTES:
            raise MalformedError(Check.STREAM_TRUNCATED, f"no end within {MAX_HELD_BYTES} bytes")
        ready, start = b"", 0
        while (end := whole.find(_END, start) + len(_END)) >= len(_END):
            ready += self._take(whole[start:end], now)
            start = end
        self._tail = whole[start:] + self._tail
        return self._give(ready, b"" if self._verify is Verify.BEFORE_USE else self._take_waiting())

    def finish(self, now: datetime) -> bytes:
        """The stream has ended: verify its receipt, and give out what was held back."""
        if self.receipt is not None:
            return b""  # read to its end once more
        if self._end is None:
            where = "inside an event" if self._tail else "at the end of an event"
            raise self.truncated(f"{where}, after {self._digest.length + len(self._tail)} bytes")
        if self._tail:
            raise _after_receipt()
        receipt = self._exchange.check(self._end, self._status, self._digest, now)
        self._check_place(receipt, self._checkpoints)
        self.receipt, self.proven, waiting = receipt, self._digest.length, self._take_waiting()
        if receipt.outcome is Outcome.COMPLETE:
            return b"".join(self._give(waiting + self._held))
        self._aborted = _outcome(receipt, "the stream was cut short by the enclave")
        error = bytes(self._held[: self._held.find(_END) + len(_END)])
        if not (_value(error) or {}).get("error"):
            error = b""
        if not waiting + error:
            raise self._aborted
        return b"".join(self._give(waiting + error))

    def conclude(self) -> None:
        """After everything was given out: raise if the enclave says that the stream was cut short."""
        if self._aborted is not None:
            raise self._aborted

    def saved(self) -> SavedExchange:
        """The exchange as an auditor needs it, once the receipt is there."""
        return self._exchange.saved(self._token, b"".join(self._kept))

    @staticmethod
    def truncated(how: str) -> VerificationError:
        return VerificationError(
            Check.STREAM_TRUNCATED,
            f"the stream ended without a receipt: {how}",
            advice="The connection was cut, or the end of the answer was taken away; ask again",
        )

    @property
    def attested(self) -> bool:
        """Everything that was given out until now is proven."""
        return self.given <= self.proven

    def _take(self, event: bytes, now: datetime) -> bytes:
        """Take one event, or one receipt; the events that it proves and that waited for that."""
        if self._end is not None:
            raise _after_receipt()
        text = event.lstrip(b"\n")
        comment = text.startswith(COMMENT)
        event = event[: len(event) - len(text)] if comment else event
        self._digest.update(event)
        self._kept.append(event)
        if self._held or _stops_a_client(event):
            self._held += event
        else:
            self._waiting += event
        if not comment:
            return b""
        try:
            token = text[len(COMMENT) : -len(_END)].decode("ascii")
        except UnicodeDecodeError as exc:
            raise MalformedError(Check.RECEIPT_FORMAT, "the receipt is not ASCII") from exc
        receipt = self._exchange.authentic(token)
        if receipt.outcome is not Outcome.CHECKPOINT:
            self._end, self._token = receipt, token
            return b""
        self._check_place(receipt, self._checkpoints + 1)
        self._exchange.check(receipt, self._status, self._digest, now)
        self._checkpoints, self._id, self.proven = receipt.checkpoints, receipt.id, self._digest.length
        return self._take_waiting()

    def _check_place(self, receipt: Receipt, number: int) -> None:
        """The receipt is the next one of this very stream, and none before it is missing."""
        if receipt.checkpoints != number or (self._checkpoints and receipt.id != self._id):
            raise VerificationError(
                Check.STREAM_CHECKPOINT,
                f"expected checkpoint {number} of {self._id or 'this stream'}, "
                f"the enclave signed {receipt.checkpoints} of {receipt.id}",
                advice="A checkpoint was dropped, moved or repeated on the way; do not use the answer",
            )

    def _take_waiting(self) -> bytes:
        waiting = bytes(self._waiting)
        self._waiting.clear()
        return waiting

    def _give(self, *parts: bytes) -> Iterator[bytes]:
        for part in parts:
            if part:
                self.given += len(part)
                yield part


@dataclass(frozen=True, slots=True)
class Attestation:
    """What is proven of one answer; stands at `response.attestation` and in its extensions."""

    verdict: Verdict
    check: PlainCheck | StreamCheck | None = field(default=None, repr=False)
    origin: str = ""  # where the enclave answers

    @property
    def attested(self) -> bool:
        """Every byte of the body that was given out until now is covered by a verified receipt or checkpoint."""
        if isinstance(self.check, StreamCheck):
            return self.check.attested
        return self.receipt is not None

    @property
    def proven(self) -> int:
        """How many bytes of a stream's events, from the first one on, are proven; 0 for other answers."""
        return self.check.proven if isinstance(self.check, StreamCheck) else 0

    @property
    def receipt(self) -> Receipt | None:
        """The verified receipt; None for a stream that has not been read to its end, and for routes without receipts."""
        return self.check.receipt if self.check is not None else None

    def bundle(self, *, with_bytes: bool = True) -> Bundle:
        """All that others need to verify this answer again; without bytes, the receipt's digests stand for them."""
        if self.check is None or self.check.receipt is None:
            raise ValueError("there is no receipt to save: read the answer to its end first")
        saved = self.check.saved()
        if not with_bytes:
            saved = replace(saved, request=None, response=None)
        evidence = dump_evidence(self.verdict.evidence)
        return Bundle(evidence=evidence, nonce=self.verdict.nonce, exchanges=(saved,))

    def save(
        self, path: PathLike[str] | str, *, with_bytes: bool = True, log_seconds: float | None = None
    ) -> None:
        """Write the bundle to a file, for `attested audit`. With bytes, it holds prompt and answer in clear.

        With `log_seconds` it also gets the proof that the receipt is in the enclave's log, and waits for that so long;
        then UnavailableError, and the file is there without it. Blocks.
        """
        bundle = self.bundle(with_bytes=with_bytes)
        Path(path).write_bytes(dump_bundle(bundle))
        if log_seconds is not None:
            from client_sdk.log_client import LogClient, prove_bundle  # noqa: PLC0415 - httpx, for those who want it

            with LogClient.of_gateway(self.origin) as client:
                bundle = prove_bundle(client, bundle, self.verdict.statement, log_seconds)
            Path(path).write_bytes(dump_bundle(bundle))


def check_answer(
    exchange: Exchange, status: int, headers: Mapping[str, str], verify: Verify = Verify.AS_YOU_READ
) -> PlainCheck | StreamCheck:
    """The check for an answer with these headers."""
    coding = headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise VerificationError(
            Check.RECEIPT_RESPONSE,
            f"the answer claims the content coding {coding!r}, which the enclave never uses",
            advice=_DO_NOT_USE,
        )
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == EVENT_STREAM:
        return StreamCheck(exchange, status, headers, verify)
    return PlainCheck(exchange, status, headers)


def _is_usual(data: bytes) -> bool:
    """One event and nothing else: a line of data with an object in it, at which no client stops."""
    if not data.startswith(b"data: {") or data.find(b"\n") != len(data) - 2 or not data.endswith(b"\n\n"):
        return False
    try:
        text = data.decode()
        value, end = _scan(text, 6)
    except (StopIteration, ValueError, RecursionError):
        return False
    return end == len(text) - 2 and not value.get("error") and b"\r" not in data


def _stops_a_client(event: bytes) -> bool:
    """Whether a client may stop reading at this event: at the end, at an error, at what it cannot read."""
    if _is_usual(event):
        return False
    if not any(line.startswith((b"data", b"\xef\xbb\xbf")) for line in event.splitlines()):
        return False  # nothing that a client hears of
    value = _value(event)
    return value is None or bool(value.get("error"))


def _value(event: bytes) -> dict[str, Any] | None:
    """The JSON object that an event carries; None when it carries anything else."""
    return _object(b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")))


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        text = data.decode().strip(" \t\r\n")
        value, end = _scan(text, 0)
    except (StopIteration, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and end == len(text) else None


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
