"""GET with patience and a memory: retries, Retry-After, limits on size and time, and answers kept on disk.

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

    def close(self) -> None:
        if self._own and self._client is not None:
            self._client.close()
            self._client = None

    def get(self, url: str, expiry: Expiry) -> Answer:
        """The answer at `url`. Older than `refresh`, it is asked for anew; past the vendor's own end it is not used."""
        now, kept = self._now(), self._load(url, expiry)
        usable = kept if kept is not None and now < kept.expires else None
        if usable and (self._offline or now - usable.fetched < self._refresh):
            return usable.answer
        if self._offline:
            reason = "has expired" if kept else "is not there"
            raise _unavailable(f"{url}: offline, and the kept answer {reason}", "Fetch once with a network")
        try:
            answer = self._fetch(url, expiry)
        except UnavailableError:
            if usable is None:
                raise
            _log.warning("cannot refresh %s; the kept answer is good until %s", url, usable.expires)
            return usable.answer
        self._save(url, answer)
        return answer

    def _fetch(self, url: str, expiry: Expiry) -> Answer:
        patience, reason = self._patience, ""
        for attempt in range(patience.attempts):
            try:
                answer = self._once(url)
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

    def _once(self, url: str) -> Answer:
        if self._client is None:
            self._client = httpx.Client()
        patience, start = self._patience, time.monotonic()
        timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s)
        with self._client.stream("GET", url, timeout=timeout, follow_redirects=False) as response:
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

    def _load(self, url: str, expiry: Expiry) -> _Kept | None:
        """A kept answer that still reads as one; a file cut short or written by another version is no answer."""
        if self._cache is None:
            return None
        try:
            raw = json.loads(self._file(self._cache, url).read_bytes())
            answer = Answer(base64.b64decode(raw["body"], validate=True), dict(raw["headers"]))
            if raw["url"] != url:
                return None
            return _Kept(answer, datetime.fromisoformat(raw["fetched"]).astimezone(UTC), expiry(answer))
        except (OSError, ValueError, KeyError, TypeError, MalformedError):
            return None

    def _save(self, url: str, answer: Answer) -> None:
        """Written beside and moved into place, so that a reader sees a whole file or none."""
        if self._cache is None:
            return
        entry = {
            "url": url,
            "fetched": self._now().isoformat(),
            "headers": dict(answer.headers),
            "body": base64.b64encode(answer.body).decode(),
        }
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self._cache, suffix=".part", delete=False) as part:
                part.write(json.dumps(entry))
                part.flush()
                os.fsync(part.fileno())
            Path(part.name).replace(self._file(self._cache, url))
        except OSError as exc:
            _log.warning("cannot keep %s: %s", url, exc)

    @staticmethod
    def _file(folder: Path, url: str) -> Path:
        return folder / f"{sha256(url.encode()).hexdigest()}.json"


def _unavailable(detail: str, advice: str) -> UnavailableError:
    return UnavailableError(Check.COLLATERAL_FETCH, detail, advice=advice)
