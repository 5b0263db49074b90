"""GET and POST with patience and a memory: retries, Retry-After, limits on size and time, and answers kept on disk.

Used by `fetch` alone. Nothing that decides imports this; what it returns is untrusted until a verifier has checked it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from random import SystemRandom

import httpx

from attestation.checks import Check
from attestation.collateral import MAX_COLLATERAL_BYTES
from attestation.errors import MalformedError, UnavailableError

_log = logging.getLogger(__name__)
_HTTP_OK, _TOO_MANY = 200, 429
_MAX_FILE_BYTES = 2 * MAX_COLLATERAL_BYTES  # what is longer does not parse: it is cut


@dataclass(frozen=True, slots=True)
class Answer:
    """A vendor's answer: the body as sent, and the headers in lower case."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Answer
    fetched: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class Question:
    """What is posted, and of which media type."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request, and the name of the file that keeps its answer."""

    url: str
    question: Question | None

    @property
    def method(self) -> str:
        return "GET" if self.question is None else "POST"

    @property
    def body(self) -> bytes | None:
        return None if self.question is None else self.question.body

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.question is None else {"Content-Type": self.question.media_type}

    @property
    def file(self) -> str:
        return (
            f"{sha256(self.url.encode() + (b'' if self.body is None else b' ' + self.body)).hexdigest()}.json"
        )


#: Reads an answer: when the vendor says it ends, or MalformedError when it is not what was asked for.
Expiry = Callable[[Answer], datetime]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to try. A slow or overloaded vendor costs at most `attempts` times `total_s`, and the waits between."""

    attempts: int = 4
    connect_s: float = 5.0
    read_s: float = 10.0
    total_s: float = 30.0  # one whole answer, however slowly it drips
    first_wait_s: float = 0.5  # doubled each time, with jitter
    longest_wait_s: float = 60.0  # a Retry-After beyond this is reported, not waited for
    sleep: Callable[[float], None] = field(default=time.sleep)


class _Again(Exception):  # noqa: N818  # a request to try again, never seen outside
    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Download:
    """Answers from `cache` while they are good, else from the network; with `offline` no socket is ever opened."""

    def __init__(
        self,
        *,
        cache: Path | None,
        offline: bool,
        client: httpx.Client | None,
        patience: Patience,
        refresh: timedelta,
        now: Callable[[], datetime],
    ) -> None:
        self._cache, self._offline, self._client, self._own = cache, offline, client, client is None
        self._patience, self._refresh, self._now = patience, refresh, now
        self.not_kept: str | None = None  # why the last answer could not be written down

    def close(self) -> None:
        if self._own and self._client is not None:
            self._client.close()
            self._client = None

    def get(self, url: str, expiry: Expiry, *, question: Question | None = None) -> Answer:
        """The answer at `url`, to `question` where one is posted. It is asked for anew when it is older than `refresh` or
        half of its life is over, whichever comes first; past the vendor's own end it is not used."""
        ask = _Ask(url, question)
        now, kept = self._now(), self._load(ask, expiry)
        usable = kept if kept is not None and now < kept.expires else None
        if usable and (self._offline or now < usable.fetched + self._young(usable)):
            return usable.answer
        if self._offline:
            reason = "has expired" if kept else "is not there"
            raise _unavailable(f"{url}: offline, and the kept answer {reason}", "Fetch once with a network")
        try:
            answer = self._fetch(ask, expiry)
        except UnavailableError:
            if usable is None:
                raise
            _log.warning("cannot refresh %s; the kept answer is good until %s", url, usable.expires)
            return usable.answer
        self._save(ask, answer)
        return answer

    def _young(self, kept: _Kept) -> timedelta:
        return min(self._refresh, (kept.expires - kept.fetched) / 2)

    def _fetch(self, ask: _Ask, expiry: Expiry) -> Answer:
        patience, reason, url = self._patience, "", ask.url
        for attempt in range(patience.attempts):
            try:
                answer = self._once(ask)
                expiry(answer)
            except (_Again, httpx.TransportError, httpx.DecodingError, MalformedError) as exc:
                reason = f"{exc}" or type(exc).__name__
                asked = exc.wait_s if isinstance(exc, _Again) else None
            else:
                return answer
            backoff = patience.first_wait_s * 2**attempt * SystemRandom().uniform(0.5, 1.0)
            wait = asked if asked is not None else min(backoff, patience.longest_wait_s)
            if wait > patience.longest_wait_s:
                raise _unavailable(f"{url}: {reason}", f"The server asks for a pause of {wait:.0f} s")
            if attempt + 1 < patience.attempts:
                patience.sleep(wait)
        raise _unavailable(
            f"{url}: {reason} ({patience.attempts} attempts)", "Try again later, or use a cache"
        )

    def _once(self, ask: _Ask) -> Answer:
        if self._client is None:
            self._client = httpx.Client()
        patience, start, url = self._patience, time.monotonic(), ask.url
        timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
        with self._client.stream(
            ask.method, url, content=ask.body, headers=ask.headers, timeout=timeout, follow_redirects=False
        ) as response:
            if response.status_code == _TOO_MANY or response.is_server_error:
                raise _Again(f"status {response.status_code}", self._retry_after(response))
            if response.status_code != _HTTP_OK:
                raise _unavailable(
                    f"{url}: status {response.status_code}", "The vendor does not know this machine"
                )
            body = bytearray()
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MAX_COLLATERAL_BYTES:
                    raise _unavailable(
                        f"{url}: more than {MAX_COLLATERAL_BYTES} bytes", "Is this the right URL?"
                    )
                if time.monotonic() - start > patience.total_s:
                    raise _Again(f"no whole answer within {patience.total_s:g} s")
            return Answer(bytes(body), {name.lower(): value for name, value in response.headers.items()})

    def _retry_after(self, response: httpx.Response) -> float | None:
        """Seconds or a date (RFC 9110 §10.2.3); anything else counts as absent."""
        text = response.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return None
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - self._now()).total_seconds())

    def _load(self, ask: _Ask, expiry: Expiry) -> _Kept | None:
        """A kept answer that still reads as one; a file cut short or written by another version is no answer."""
        if self._cache is None:
            return None
        try:
            with (self._cache / ask.file).open("rb") as file:
                raw = json.loads(file.read(_MAX_FILE_BYTES))
            answer = Answer(base64.b64decode(raw["body"], validate=True), dict(raw["headers"]))
            if raw["url"] != ask.url:
                return None
            return _Kept(answer, datetime.fromisoformat(raw["fetched"]).astimezone(UTC), expiry(answer))
        except (OSError, ValueError, KeyError, TypeError, MalformedError):
            return None

    def _save(self, ask: _Ask, answer: Answer) -> None:
        """Written beside and moved into place, so that a reader sees a whole file or none. The answer counts either way."""
        if self._cache is None:
            return
        entry = {
            "url": ask.url,
            "fetched": self._now().isoformat(),
            "headers": dict(answer.headers),
            "body": base64.b64encode(answer.body).decode(),
        }
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            _replace(self._cache / ask.file, json.dumps(entry))
        except OSError as exc:
            self.not_kept = f"{type(exc).__name__}: {exc.strerror}"
            _log.warning("cannot keep %s: %s", ask.url, exc)
        else:
            self.not_kept = None


def _replace(file: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as part:
        try:
            part.write(text)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(file)
        except OSError:
            with suppress(OSError):  # a full disk keeps no half files
                Path(part.name).unlink()
            raise


def _unavailable(detail: str, advice: str) -> UnavailableError:
    return UnavailableError(Check.COLLATERAL_FETCH, detail, advice=advice)
