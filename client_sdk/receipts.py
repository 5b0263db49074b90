"""Answers and their receipts, without I/O: `check_answer` picks the check, and `Attestation` tells what it came to.

`PlainCheck` gives out a plain answer once its receipt has been verified, and nothing before; `streams` has the one for streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from os import PathLike
from pathlib import Path

from attestation.bundle import Bundle, SavedExchange, dump_bundle
from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.evidence import dump_evidence
from attestation.receipt import NONCE_HEADER, RECEIPT_HEADER, Outcome, Receipt, RunningDigest
from attestation.verdict import Verdict
from client_sdk.exchange import DO_NOT_USE, Exchange, wrong_outcome
from client_sdk.files import write_private
from client_sdk.streams import StreamCheck, Verify

EVENT_STREAM = "text/event-stream"


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
            raise wrong_outcome(receipt, "the answer is plain")
        self.receipt = receipt
        return body

    def conclude(self) -> None:
        """Nothing is left to say about a plain answer after `finish`."""

    def saved(self) -> SavedExchange:
        """The exchange as an auditor needs it."""
        return self._exchange.saved(self._token, bytes(self._body))


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

        A file that was not there is for its owner alone (mode 0600).

        With `log_seconds` it also gets the proof that the receipt is in the enclave's log, and waits for that so long;
        then UnavailableError, and the file is there without it. Blocks.
        """
        bundle = self.bundle(with_bytes=with_bytes)
        write_private(Path(path), dump_bundle(bundle))
        if log_seconds is not None:
            from client_sdk.log_client import LogClient, prove_bundle  # noqa: PLC0415 - httpx, for those who want it

            with LogClient.of_gateway(self.origin) as client:
                bundle = prove_bundle(client, bundle, self.verdict.statement, log_seconds)
            write_private(Path(path), dump_bundle(bundle))


def fields(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """An answer's headers, read once: names as `Content-Type` is written; of one name, all values as HTTP joins them."""
    found: dict[str, str] = {}
    for name, value in raw:
        known, text = _titled(name), value.decode("latin-1")
        found[known] = f"{found[known]}, {text}" if known in found else text
    return found


@lru_cache(maxsize=256)
def _titled(name: bytes) -> str:
    return name.decode("latin-1").title()


def check_answer(
    exchange: Exchange, status: int, headers: Mapping[str, str], verify: Verify = Verify.AS_YOU_READ
) -> PlainCheck | StreamCheck:
    """The check for an answer with these headers."""
    coding = headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise VerificationError(
            Check.RECEIPT_RESPONSE,
            f"the answer claims the content coding {coding!r}, which the enclave never uses",
            advice=DO_NOT_USE,
        )
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == EVENT_STREAM:
        return StreamCheck(exchange, status, headers, verify)
    return PlainCheck(exchange, status, headers)


def _missing(detail: str) -> VerificationError:
    return VerificationError(
        Check.RECEIPT_MISSING,
        detail,
        advice="What answered is not the gateway in the enclave, or the receipt was taken away; do not use the answer",
    )
