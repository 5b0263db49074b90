"""One exchange under /v1: what came in, what went out, and the receipt over both.

Every byte of an answer leaves through `Exchange`, which hashes it on its way; so no answer can lack its receipt, and no
receipt can be about other bytes than those sent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from attestation._b64 import b64url_decode, b64url_encode
from attestation.binding import NONCE_BYTES
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.parts import RunningParts
from attestation.receipt import (
    COMMENT,
    NONCE_HEADER,
    RECEIPT_HEADER,
    Outcome,
    RunningDigest,
    Usage,
    sign_receipt,
)
from enclave_server.asgi import Fields, Headers, Scope, Send, fields_of
from enclave_server.begun import Work
from enclave_server.errors import ApiError
from enclave_server.identity import Identity, ReceiptNumbers
from enclave_server.receipts.log import ReceiptQueue
from enclave_server.shortcuts import chunk_writer, write_whole
from enclave_server.tokens import Tokens

_NONCE, _RECEIPT = NONCE_HEADER.lower().encode(), RECEIPT_HEADER.lower().encode()
_JSON = b"application/json"
_NOTHING: Mapping[str, Any] = {}
DONE = b"data: [DONE]\n\n"


def parse_nonce(text: str) -> bytes:
    """A caller's nonce: base64url of exactly 32 bytes."""
    try:
        nonce = b64url_decode(text, Check.BINDING_NONCE, "the nonce")
    except MalformedError:
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise ApiError(
            400,
            "invalid_nonce",
            f"{NONCE_HEADER} must be base64url of {NONCE_BYTES} bytes.",
            param=NONCE_HEADER,
        )
    return nonce


def _sent_nonce(fields: Fields) -> bytes | None:
    sent = fields.get(_NONCE)
    if sent is None:
        return None
    if len(sent) > 1:
        raise ApiError(400, "invalid_nonce", f"{NONCE_HEADER} was sent more than once.", param=NONCE_HEADER)
    return parse_nonce(sent[0].decode("latin-1"))


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a stream is signed on its way: with the event that makes it so many events, or so many seconds."""

    events: int = 1000
    seconds: float = 1.0


async def unsigned(send: Send, error: ApiError) -> None:
    """Answer with an error that nobody signs."""
    body = error.to_json()
    headers = [(b"content-type", _JSON), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Exchange:
    """Answers one request, in one piece (`plain`) or as a stream (`start`, `events`…, `end`)."""

    refused: ApiError | None = None  # for its nonce; it is answered under ours
    sampling = _NOTHING
    parts: RunningParts | None = None  # where the client wants to show parts of the chat later
    tokens: Tokens | None = None  # where the client asked for a digest over token ids
    hide_usage = False  # the gateway asked for the token counts of a stream, the client did not
    streaming = done = False
    status, outcome = 0, "gone"  # until a receipt says another
    usage: Usage | None = None
    error_code: str | None = None
    event_count = 0
    response: RunningDigest  # from the first byte on
    first_byte: float | None = None
    _number: tuple[str, int] | None = None  # of the receipt and of all checkpoints before it
    _write: Callable[[bytes], bool] | None = None  # the short way of a stream's events, where there is one
    _checkpoints = 0
    _signed_events, _signed_at = 0, 0.0  # where the last checkpoint was

    def __init__(
        self,
        scope: Scope,
        send: Send,
        identity: Identity,
        numbers: ReceiptNumbers,
        pace: Pace = Pace(),
        log: ReceiptQueue | None = None,
    ) -> None:
        self._send, self._numbers, self._pace, self.log = send, numbers, pace, log
        self.identity = identity
        self.method: str = scope["method"]
        query: bytes = scope["query_string"]
        self.target = (scope["raw_path"] + (b"?" + query if query else b"")).decode("latin-1")
        self.fields = fields_of(scope["headers"])
        try:
            self.nonce = _sent_nonce(self.fields) or os.urandom(NONCE_BYTES)
        except ApiError as exc:
            self.nonce, self.refused = os.urandom(NONCE_BYTES), exc.with_traceback(None)
        self.request = RunningDigest(self.nonce)

    async def plain(
        self,
        status: int,
        body: bytes,
        outcome: Outcome,
        *,
        content_type: bytes = _JSON,
        usage: Usage | None = None,
        headers: Headers = (),
    ) -> None:
        """The whole answer, with its receipt in the header."""
        if self.method == "HEAD":
            body = b""
        self.response = RunningDigest(self.nonce, body)
        receipt = self._receipt(status, outcome, usage).encode()
        self.done, self.first_byte = True, time.monotonic()
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (_RECEIPT, receipt),
            *headers,
            (_NONCE, b64url_encode(self.nonce).encode()),
        ]
        if not write_whole(self._send, status, headers, body):
            await self._start(status, headers)
            await self._send({"type": "http.response.body", "body": body})

    async def start(self, content_type: bytes) -> None:
        """Begin a stream with status 200."""
        nonce = b64url_encode(self.nonce).encode()
        headers = [(b"content-type", content_type), (b"cache-control", b"no-store"), (_NONCE, nonce)]
        await self._start(200, headers)
        self.streaming = True  # and not before: where it had to wait, an error may still take its place
        self.response = RunningDigest(self.nonce)
        self._write = chunk_writer(self._send)

    def events(self, data: bytes) -> Work | None:
        """Whole events, as the engine wrote them: one write, and a checkpoint that is due. Returns what is still to do of it."""
        if self._write is None or not self._write(data):
            return self._events(data)
        due = self._due(data)
        return None if due is None else self._checkpoint(due)

    async def _events(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        due = self._due(data)
        if due is not None:
            await self._checkpoint(due)

    def _due(self, data: bytes) -> float | None:
        """Count what was sent; the time, when a checkpoint is due after it."""
        self._sent(data)
        now = time.monotonic()
        if self.first_byte is None:
            self.first_byte = self._signed_at = now
        due = (
            now - self._signed_at >= self._pace.seconds
            or self.event_count - self._signed_events >= self._pace.events
        )
        return now if due and not data.endswith(DONE) else None

    async def end(self, outcome: Outcome, usage: Usage | None = None) -> None:
        """The receipt, last on the wire."""
        self.done = True
        await self._send({"type": "http.response.body", "body": self._comment(outcome, usage)})

    async def fail(self, error: ApiError) -> None:
        """End the exchange with an error, wherever it stands."""
        if self.done:
            return
        self.error_code = error.code
        anthropic = self.target.startswith("/v1/messages")
        if self.streaming:
            event = error.to_event(anthropic=anthropic)
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
            self._sent(event)
            await self.end(Outcome.ABORTED)
            return
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        body = error.to_json(anthropic=anthropic)
        await self.plain(error.status, body, Outcome.ERROR, headers=headers)

    def _sent(self, data: bytes) -> None:
        """Count events. After sending: the server waits before it writes, and what is cancelled there has not been sent."""
        self.event_count += data.count(b"\n\n")
        self.response.update(data)

    async def _checkpoint(self, now: float) -> None:
        self._signed_events, self._signed_at = self.event_count, now
        self._checkpoints += 1
        try:
            comment = self._comment(Outcome.CHECKPOINT)
            await self._send({"type": "http.response.body", "body": comment, "more_body": True})
        except BaseException:
            self._checkpoints -= 1  # it was not sent, and the receipt tells how many were
            raise

    def _comment(self, outcome: Outcome, usage: Usage | None = None) -> bytes:
        return COMMENT + self._receipt(200, outcome, usage).encode() + b"\n\n"

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _receipt(self, status: int, outcome: Outcome, usage: Usage | None) -> str:
        if outcome is not Outcome.CHECKPOINT:
            self.status, self.outcome, self.usage = status, str(outcome), usage
        if self._number is None:
            self._number = self._numbers.next()
        number, counter = self._number
        statement, now = self.identity.statement, time.time()
        if now >= statement.not_after:
            raise RuntimeError("the statement has ended: nothing is signed under it any more")
        token = sign_receipt(
            self.identity.keys.receipt,
            id=number,
            counter=counter,
            time=int(now),
            method=self.method,
            path=self.target,
            asked=(self.request.digest(), self.request.length),
            status=status,
            answered=(self.response.digest(), self.response.length),
            outcome=outcome,
            model=self.identity.served,
            usage=usage,
            sampling=self.sampling,
            statement=self.identity.statement_digest,
            checkpoints=self._checkpoints,
            parts=self.parts.digest() if self.parts and outcome is Outcome.COMPLETE else None,
            tokens=self.tokens.digest(self.nonce) if self.tokens and outcome is Outcome.COMPLETE else None,
        )
        if self.log is not None and outcome is not Outcome.CHECKPOINT:
            self.log.add(token)
        return token
