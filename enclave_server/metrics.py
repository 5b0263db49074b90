"""Numbers for Prometheus, on a listener of their own: how much, how fast, how well. Never what, and never whose.

Every label has a fixed set of values. Content, API keys, key names and tenants are no label and no number.
"""

from __future__ import annotations

import socket
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

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


class _Seconds:
    """How often something took how long."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(_SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        limits = [*map(floatToGoString, _SECONDS), "+Inf"]
        return list(zip(limits, accumulate(self.counts), strict=True))


class Metrics:
    """The numbers of one process. Counted in plain numbers, and put into Prometheus' terms when it asks, in a thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests: defaultdict[tuple[str, int, str], int] = defaultdict(int)
        self._refused: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, _Seconds] = defaultdict(_Seconds)
        self._first: defaultdict[str, _Seconds] = defaultdict(_Seconds)
        self._prompt = self._completion = 0
        self.registry.register(self)

    def answered(self, route: str, exchange: Exchange, since: float) -> None:
        """Count one exchange that has ended. `route` is one of the table's, or `other`."""
        self._requests[route, exchange.status, exchange.outcome] += 1
        if exchange.error_code in _REFUSALS:
            self._refused[exchange.error_code] += 1
            return
        self._seconds[route].add(time.monotonic() - since)
        if exchange.status == 200 and exchange.first_byte is not None:
            self._first[route].add(exchange.first_byte - since)
        if exchange.usage is not None:
            self._prompt += exchange.usage.prompt_tokens
            self._completion += exchange.usage.completion_tokens

    def collect(self) -> Iterator[Metric]:
        """What was counted, as prometheus_client's registry asks for it."""
        labels = ["route", "status", "outcome"]
        requests = CounterMetricFamily(
            "enclave_requests", "Answers by route, status and outcome.", labels=labels
        )
        for (route, status, outcome), count in list(self._requests.items()):
            requests.add_metric([route, str(status or "none"), outcome], count)
        yield requests
        refused = CounterMetricFamily(
            "enclave_refused", "Requests refused at the door, by reason.", labels=["code"]
        )
        for code, count in list(self._refused.items()):
            refused.add_metric([code], count)
        yield refused
        tokens = CounterMetricFamily("enclave_tokens", "Tokens as the engine counted them.", labels=["kind"])
        tokens.add_metric(["prompt"], self._prompt)
        tokens.add_metric(["completion"], self._completion)
        yield tokens
        words = "From a request's head to the end of its answer."
        yield _histogram("enclave_request_seconds", words, self._seconds)
        words = "From a request's head to the first byte of a good answer's body."
        yield _histogram("enclave_first_byte_seconds", words, self._first)

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


def check_ports(host: str, port: int | None, workers: int) -> None:
    """Before anything slow is started: OSError, with the setting's name, where a worker could not listen."""
    for number in range(port, port + workers) if port is not None else ():
        family, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as exc:
                raise OSError(
                    f"metrics_host, metrics_port: cannot listen on {host}:{number}: {exc.strerror}"
                ) from exc


def _histogram(name: str, words: str, taken: Mapping[str, _Seconds]) -> Metric:
    family = HistogramMetricFamily(name, words, labels=["route"])
    for route, seconds in list(taken.items()):
        family.add_metric([route], seconds.buckets(), seconds.sum)
    return family
