"""The tickets that one enclave's sealed answers brought, each for one request to come. No I/O."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from attestation.sealed_head import Headers
from attestation.sealed_ticket import HEADER, SECONDS, SPAN, Ticket, parse_ticket

MOST = 64  # as many requests may be under way at once and all be sealed with one
GOOD_FOR = SECONDS - SPAN - 60.0  # less than the enclave says: clocks differ, and a request takes its time


class Tickets:
    """The newest is used first, so that those that are left are the oldest. Threads may share it: each step is one of a deque."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._kept: deque[tuple[float, bytes, Ticket]] = deque(maxlen=MOST)
        self._monotonic = monotonic

    def take(self, verdict: bytes) -> Ticket | None:
        """One that came under the verdict with this nonce, for nobody else from now on. What is not good is dropped on the way.

        With each verdict begins another series: a ticket that somebody read in this process's memory opens what follows in its own.
        """
        try:
            while True:
                came, under, ticket = self._kept.pop()
                if under == verdict and self._monotonic() - came < GOOD_FOR:
                    return ticket
        except IndexError:
            return None

    def take_out(self, headers: Headers, verdict: bytes) -> Headers:
        """An answer's headers without its ticket, which is kept here and seen by nobody else."""
        brought = [text for name, text in headers if name == HEADER]
        if not brought:
            return headers
        for text in brought:
            self._kept.append((self._monotonic(), verdict, parse_ticket(text)))
        return tuple([pair for pair in headers if pair[0] != HEADER])

    def drop(self) -> None:
        """The enclave does not take them."""
        self._kept.clear()
