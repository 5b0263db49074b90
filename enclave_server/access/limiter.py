"""What one key may do at a time: requests and tokens in a minute, and requests at once.

A minute begins with a key's first use and ends with all counts at zero. Tokens are known only when an answer has ended,
so they are charged then: a key that went over its limit waits for the minute's end. All workers of a gateway count together.
"""

from __future__ import annotations

import time
from functools import lru_cache
from math import ceil

from limits import RateLimitItemPerMinute
from limits.strategies import FixedWindowRateLimiter

from enclave_server.access.counters import SharedCounters
from enclave_server.access.keys import Key
from enclave_server.access.shared import NamedTally
from enclave_server.errors import ApiError
from enclave_server.settings import Settings


@lru_cache(maxsize=1024)
def _requests(amount: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(amount, namespace="requests")


@lru_cache(maxsize=1024)
def _tokens(amount: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(amount, namespace="tokens")


class Limiter:
    """Counts by key id. Make it before workers are forked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._windows = FixedWindowRateLimiter(SharedCounters(shared=settings.workers > 1))
        self._running = NamedTally(settings.workers)
        self.begin = self._running.begin

    def enter(self, key: Key) -> None:
        """Count one request until `leave`; 429 when a limit is reached."""
        settings = self._settings
        tokens = key.tokens_per_minute or settings.key_tokens_per_minute
        if tokens is not None and not self._windows.test(_tokens(tokens), key.id):
            raise self._too_many("token_rate_limit", "tokens a minute", _tokens(tokens), key)
        most = key.concurrency or settings.key_concurrency
        requests = key.requests_per_minute or settings.key_requests_per_minute
        running = self._running.add(key.id, 1)
        try:
            if most is not None and running > most:
                raise ApiError(
                    429, "concurrency_limit", f"This key may have {most} requests at once.", retry_after=1
                )
            if requests is not None and not self._windows.hit(_requests(requests), key.id):
                raise self._too_many("request_rate_limit", "requests a minute", _requests(requests), key)
        except BaseException:
            self.leave(key)
            raise

    def leave(self, key: Key) -> None:
        self._running.add(key.id, -1)

    def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens of an answer."""
        limit = key.tokens_per_minute or self._settings.key_tokens_per_minute
        if tokens and limit is not None:
            self._windows.hit(_tokens(limit), key.id, cost=tokens)

    def _too_many(self, code: str, what: str, limit: RateLimitItemPerMinute, key: Key) -> ApiError:
        wait = self._windows.get_window_stats(limit, key.id).reset_time - time.time()
        message = f"This key may have {limit.amount} {what}."
        return ApiError(429, code, message, retry_after=max(1, ceil(wait)))
