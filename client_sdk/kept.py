"""A session that keeps itself verified, shared by threads, tasks, event loops and clients.

One attestation runs at a time, whoever asks for it. When a request finds that the verdict will end soon, a thread that
lives for one attestation renews it while requests go on under the old one; so an active client never waits, an idle one
asks for nothing, and there is nothing to stop when clients are closed. A process that forks keeps its verdicts, and
neither locks nor connections.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, Protocol
from weakref import WeakSet

from attestation._b64 import b64url_encode
from attestation.checks import Check
from attestation.errors import AttestationError, MalformedError, UnavailableError
from attestation.evidence import MAX_DOCUMENT_BYTES, MEDIA_TYPE
from attestation.receipt import NONCE_HEADER
from attestation.verdict import Verdict
from client_sdk._bodies import Clock
from client_sdk._worlds import broken
from client_sdk.deadline import Deadline
from client_sdk.session import Session, State, Verified
from client_sdk.terms import Files, Terms
from client_sdk.tls import unpinned_context

EVIDENCE_PATH = "/.well-known/attestation"
EVIDENCE_TIMEOUT = {"connect": 10.0, "read": 30.0, "write": 10.0, "pool": 10.0}  # seconds
EVIDENCE_SECONDS = 60.0  # for all of a document, however slowly it comes
_HEADERS = {"Accept": MEDIA_TYPE, "Accept-Encoding": "identity", "User-Agent": "attested-inference"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What answered, as it is: the document proves itself, the rest is unsigned."""

    document: bytes
    nonce: str | None
    date: datetime | None


Fetch = Callable[[bytes], Fetched]


class _Forks(Protocol):
    def forked(self) -> None: ...


_shared: WeakSet[_Forks] = WeakSet()


def survive_forks(thing: _Forks) -> None:
    """Have `thing.forked()` called in every child process before anything else runs there."""
    _shared.add(thing)


def _in_child() -> None:
    with warnings.catch_warnings():  # nobody forgot to close what goes here: it is the parent's
        warnings.simplefilter("ignore", ResourceWarning)
        for thing in list(_shared):
            thing.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


class KeptSession:
    """One enclave's session. `fetch` gets evidence in the way of the client that asks."""

    def __init__(
        self, session: Session, terms: Terms, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._session, self._terms, self._clock = session, terms, clock
        self._monotonic = monotonic
        self._ends = 0.0  # by it: no verdict outlives its time by a clock that is set back
        self._attempts = 0  # attestations begun
        self._made_by = 0  # the one that the verdict comes from
        self._files = Files()  # that its policy was read from
        self.forked()
        survive_forks(self)

    def forked(self) -> None:
        """The thread that held them is not in this process."""
        self._lock, self._renewing = threading.Lock(), threading.Lock()

    @property
    def state(self) -> State:
        return self._session.state

    @property
    def attempts(self) -> int:
        """How many attestations were begun; tells those before a refusal from those after it."""
        return self._attempts

    def current(self) -> Verdict | None:
        """The verdict that is valid now, by the calendar and by the time that has passed. Raises what was just refused."""
        verdict = self._session.current(self._clock())
        return None if verdict is not None and self._monotonic() >= self._ends else verdict

    def ready(self) -> Verdict | None:
        """The verdict that a new request may leave under: one that is valid now, reached on the terms as they are now."""
        verdict = self.current()
        return None if verdict is not None and self._files.changed() else verdict

    def verdict(self, fetch: Fetch, stale: Verdict | None = None, before: int = 0) -> Verdict:
        """A verdict that is valid now; attests unless one is ready. Everybody who waits gets the same outcome.

        An enclave that does not answer under `stale`'s keys must show others, or the same ones in an attestation begun
        after the first `before`.
        """
        with self._lock:
            verdict = self.ready()
            if verdict is None:
                self._session.forget()
                return self._attest(fetch)
            if stale is not None and self._made_by <= before and _same_keys(verdict, stale):
                self._session.forget()
                return self._attest(fetch)
            return verdict

    def renew_when_due(self, fetch: Fetch) -> None:
        """Start a renewal if it is time for one and none is on its way. Returns at once."""
        if not self._session.due(self._clock()) or not self._renewing.acquire(blocking=False):
            return
        renewing = self._renewing
        thread = threading.Thread(
            target=self._renew, args=(fetch, renewing), name="attestation-renewal", daemon=True
        )
        try:
            thread.start()
        except (
            RuntimeError
        ):  # the interpreter is on its way out, or out of threads: the next request tries again
            renewing.release()

    def hurry(self, fetch: Fetch) -> None:
        """Renew now, in the background."""
        self._session.hurry(self._clock())
        self.renew_when_due(fetch)

    def _renew(self, fetch: Fetch, renewing: threading.Lock) -> None:
        try:
            with self._lock:
                if self._session.due(self._clock()):
                    self._attest(fetch)
        except AttestationError:
            pass  # the session has the reason, and tells it at the deadline
        finally:
            renewing.release()

    def _attest(self, fetch: Fetch) -> Verdict:
        self._attempts += 1
        number, nonce = self._attempts, self._session.begin()
        try:
            policy, files = self._terms.read()
            self._session.policy = policy
            found = fetch(nonce)
        except AttestationError as error:
            self._session.fail(error, self._clock())
            raise
        now = self._clock()
        verdict = self._session.accept(
            found.document,
            found.nonce,
            now,
            found.date,
            lambda verdict: self._terms.accepted(policy, verdict),
        )
        self._made_by, self._files = number, files
        if isinstance(state := self._session.state, Verified):
            self._ends = self._monotonic() + (state.until - now).total_seconds()
        return verdict


def _same_keys(one: Verdict, other: Verdict) -> bool:
    return one.statement_digest == other.statement_digest


def fetch_evidence(http: ModuleType, origin: str, options: Mapping[str, Any], nonce: bytes) -> Fetched:
    """The evidence document, from whoever answers: it proves itself. Nothing of a user's is sent. Blocks."""
    deadline = Deadline(EVIDENCE_SECONDS)
    request = http.Request(
        "GET",
        f"{origin}{EVIDENCE_PATH}?nonce={b64url_encode(nonce)}",
        headers=_HEADERS,
        extensions={"timeout": EVIDENCE_TIMEOUT, "trace": deadline.trace},
    )
    try:
        with deadline, http.HTTPTransport(verify=unpinned_context(), **options) as transport:
            answer = transport.handle_request(request)
            document = _read(answer.stream)
            answer.stream.close()
            if deadline.passed:  # a document that ends with its connection looks whole
                raise TimeoutError
    except (http.TransportError, *broken(http)) as exc:
        late = f"not all of it came within {EVIDENCE_SECONDS:.0f} s" if deadline.passed else str(exc)
        raise _unavailable(origin, f"{type(exc).__name__}: {late}") from exc
    if answer.status_code != 200:
        retry = answer.headers.get("Retry-After")
        again = f", to be asked again in {retry} s" if retry else ""
        raise _unavailable(origin, f"status {answer.status_code}{again}")
    return Fetched(document, answer.headers.get(NONCE_HEADER), _date(answer.headers.get("Date")))


def _read(stream: Any) -> bytes:
    document = bytearray()
    for part in stream:
        document += part
        if len(document) > MAX_DOCUMENT_BYTES:
            detail = f"the evidence document has more than {MAX_DOCUMENT_BYTES} bytes"
            raise MalformedError(Check.EVIDENCE_FORMAT, detail)
    return bytes(document)


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else None


def _unavailable(origin: str, what: str) -> UnavailableError:
    return UnavailableError(
        Check.EVIDENCE_FETCH,
        f"no evidence from {origin}: {what}",
        advice="See whether the gateway runs there and answers `/readyz`",
    )
