"""Numbers for Prometheus, on a listener of their own: how much, how fast, how well. Never what, and never whose.

Every label has a fixed set of values. Content, API keys, key names and tenants are no label and no number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from enclave_server.exchange import Exchange
from enclave_server.log import log

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
# What a refusal is counted under: the codes that say that a caller has to wait, or is not let in.
_REFUSALS = frozenset(
    {
        "access_unavailable",
        "concurrency_limit",
        "engine_unavailable",
        "invalid_api_key",
        "overloaded",
        "request_rate_limit",
        "token_rate_limit",
    }
)


class Metrics:
    """The numbers of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        new: dict[str, Any] = {"namespace": "enclave", "registry": self.registry}
        requests = Counter(
            "requests", "Answers by route, status and outcome.", ["route", "status", "outcome"], **new
        )
        refused = Counter("refused", "Requests refused at the door, by reason.", ["code"], **new)
        tokens = Counter("tokens", "Tokens as the engine counted them.", ["kind"], **new)
        new |= {"labelnames": ["route"], "buckets": _SECONDS}
        seconds = Histogram("request_seconds", "From a request's head to the end of its answer.", **new)
        first = Histogram(
            "first_byte_seconds", "From a request's head to the first byte of a good answer's body.", **new
        )
        # Looking a label up takes longer than counting: here each is looked up once.
        self._requests, self._refused = cache(requests.labels), cache(refused.labels)
        self._seconds, self._first = cache(seconds.labels), cache(first.labels)
        self._prompt, self._completion = tokens.labels("prompt"), tokens.labels("completion")

    def answered(self, route: str, exchange: Exchange, since: float) -> None:
        """Count one exchange that has ended. `route` is one of the table's, or `other`."""
        self._requests(route, exchange.status or "none", exchange.outcome).inc()
        if exchange.error_code in _REFUSALS:
            self._refused(exchange.error_code).inc()
            return
        self._seconds(route).observe(time.monotonic() - since)
        if exchange.status == 200 and exchange.first_byte is not None:
            self._first(route).observe(exchange.first_byte - since)
        if exchange.usage is not None:
            self._prompt.inc(exchange.usage.prompt_tokens)
            self._completion.inc(exchange.usage.completion_tokens)

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges by name, each with its description, and asked when Prometheus asks."""
        for name, (words, ask) in gauges.items():
            Gauge(name, words, namespace="enclave", registry=self.registry).set_function(ask)

    @contextmanager
    def served(self, host: str, port: int | None, workers: int = 1) -> Iterator[None]:
        """Answer Prometheus over plain HTTP for as long as the block lasts: on the first free port of one a worker."""
        if port is None:
            yield
            return
        server, thread = self._listen(host, range(port, port + workers))
        log.info("metrics listen", address=f"{host}:{server.server_port}")
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _listen(self, host: str, ports: range) -> tuple[WSGIServer, Thread]:
        for port in ports:
            with suppress(OSError):  # another worker has it
                return start_http_server(port, host, self.registry)
        raise OSError(f"metrics_port: {host} has no free port of {ports.start} to {ports.stop - 1}")
