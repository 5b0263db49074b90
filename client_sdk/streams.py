"""Streams, checked as their bytes arrive and without I/O: nothing that a receipt contradicts is taken as whole.

`StreamCheck` gives out events as they come, or once they are proven (`Verify`): each checkpoint proves everything before it,
and one that contradicts it raises at once. Events at which a client stops reading (`[DONE]`, errors, what cannot be read) are
always held back until the receipt at the stream's very end has been verified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from attestation.bundle import SavedExchange
from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.receipt import COMMENT, NONCE_HEADER, Outcome, Receipt, RunningDigest
from client_sdk.exchange import DO_NOT_USE, Exchange, wrong_outcome

MAX_HELD_BYTES = 16 * 1024 * 1024  # of a stream: an event that does not end, or events after the terminal one
_END = b"\n\n"
_TEXTS = (
    b'"content":"',
    b'"text":"',
    b'"delta":"',
)  # where the one thing stands that differs between most events
_UNESCAPED = re.compile(rb'[^"\\\x00-\x1f]*')
_NO_SHAPE = (b"\n", b"\n")  # of no usual event
_json: Any = json.JSONDecoder()
_scan = _json.scan_once  # what json.loads does around it costs more than reading an event


class Verify(StrEnum):
    """When a stream's events are given out."""

    AS_YOU_READ = "as_you_read"  # when they come; what follows the last checkpoint is provisional
    BEFORE_USE = "before_use"  # when a checkpoint or the receipt at the end has proven them


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
        self._shape = _NO_SHAPE  # of the last usual event: what came before the text in it, and after
        self._tail = bytearray()  # the start of an event that is still to come
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
        if self._tail or self._waiting or self._held or self._end or self._verify is Verify.BEFORE_USE:
            return False
        before, after = self._shape
        if not (data.startswith(before) and data.endswith(after) and _is_text(data, len(before), len(after))):
            if not _is_usual(data):
                return False
            self._shape = _shape(data)
        self._digest.update(data)
        self._kept.append(data)
        self.given += len(data)
        return True

    def feed(self, data: bytes, now: datetime) -> Iterable[bytes]:
        """Take the bytes of one read; the events that may go out before the receipt, the proven ones apart."""
        if self.passes(data):
            return (data,)
        if tail := self._tail:
            tail += data
            ends = tail.find(_END, len(tail) - len(data) - 1) >= 0  # none did in what was here before
            data = bytes(tail) if ends else b""
            del tail[: len(data)]
        cut = data.rfind(_END) + len(_END)
        whole, rest = (data[:cut], data[cut:]) if cut >= len(_END) else (b"", data)
        tail += rest
        if len(tail) + len(self._held) + len(self._waiting) > MAX_HELD_BYTES:
            raise MalformedError(Check.STREAM_TRUNCATED, f"no end within {MAX_HELD_BYTES} bytes")
        ready, start = b"", 0
        while (end := whole.find(_END, start) + len(_END)) >= len(_END):
            ready += self._take(whole[start:end], now)
            start = end
        tail[:0] = whole[start:]
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
        self._aborted = wrong_outcome(receipt, "the stream was cut short by the enclave")
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


def _shape(usual: bytes) -> tuple[bytes, bytes]:
    """What is before the text of a usual event, and after it: with other text in between, the event is as usual.

    In JSON that can be read, these marks stand at the start of a string and nowhere else.
    """
    for mark in _TEXTS:
        if start := usual.find(mark) + 1:
            start += len(mark) - 1
            end = usual.find(b'"', start)
            return _NO_SHAPE if b"\\" in usual[start:end] else (usual[:start], usual[end:])
    return _NO_SHAPE


def _is_text(data: bytes, before: int, after: int) -> bool:
    """Whether what is left between them is a string's inside in JSON, without anything escaped in it."""
    end = len(data) - after
    if _UNESCAPED.fullmatch(data, before, end) is None:
        return False
    if data.isascii():
        return True
    try:
        data[before:end].decode()
    except UnicodeDecodeError:
        return False
    return True


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


def _after_receipt() -> VerificationError:
    return VerificationError(
        Check.RECEIPT_RESPONSE,
        "bytes follow the receipt, which is the last thing on the wire",
        advice=DO_NOT_USE,
    )
