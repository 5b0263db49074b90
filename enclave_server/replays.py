"""What was here before: the encapsulated key of each sealed request, for as long as the request could be accepted again.

Bounded, and closed when full: a request that cannot be remembered is refused, never let through. The time comes from the
same clock that judges the requests' own, which never goes back: who sets this machine's clock cannot make it forget.
"""

from __future__ import annotations

from hashlib import sha256
from math import ceil

from attestation.checks import Check
from attestation.errors import VerificationError
from attestation.sealed import MAX_CLOCK_SKEW
from enclave_server.errors import ApiError

WINDOW = (
    2 * MAX_CLOCK_SKEW + 2
)  # seconds from the first moment at which a request is accepted to the last, and rounding


class Replays:
    """Remembers for one window at least, and for two at most: by then the request's own time refuses it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._turn = 0.0

    def check(self, enc: bytes, now: float) -> None:
        """This key is new, and there is room to remember it."""
        if now >= self._turn:
            late = now >= self._turn + WINDOW
            self._young, self._old = set(), set() if late else self._young
            self._turn = now + WINDOW
        short = _short(enc)
        if short in self._young or short in self._old:
            raise VerificationError(Check.SEALED_REPLAY, "this sealed request was here before")
        if len(self._young) + len(self._old) >= self._limit:
            raise ApiError(
                503,
                "sealed_full",
                "Too many sealed requests in a few minutes.",
                retry_after=max(1, ceil(self._turn - now)),
            )

    def remember(self, enc: bytes) -> None:
        """Once `check` let it through, and the request was opened."""
        self._young.add(_short(enc))


def _short(enc: bytes) -> int:
    """8 bytes of a digest: nobody can aim at a key that another client has not sent yet."""
    return int.from_bytes(sha256(enc).digest()[:8], "big")
