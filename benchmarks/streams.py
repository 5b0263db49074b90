"""A fixed number of streams of a fixed number of tokens, all at once, and how long they take together."""

from __future__ import annotations

import json
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import cast

LOSS = 0.02  # the goal: no more than this is lost
PATIENCE = 120  # seconds for the next bytes
SETTLED = 0.02  # seconds before a block: handshakes are over, and what the last block left to do
_EVENT = b"data: {"
_END = b"\r\n0\r\n\r\n"  # of a chunked body whose content has no CR


@dataclass(frozen=True)
class Load:
    """So many streams at once of so many tokens, for `weight` of the seconds that were asked for."""

    model: str
    connections: int
    tokens: int
    weight: float = 1.0
    goal: float | None = LOSS


class Way:
    """One way to the engine: how it is reached, and the request as it is sent.

    Of each block so far, `spent` is the CPU time of what `cpu` counts, and `undisturbed` what that function says."""

    def __init__(self, dial: Callable[[], socket.socket], key: str, cpu: Callable[[], float]) -> None:
        self._dial, self._key, self._cpu = dial, key, cpu
        self.spent: list[float] = []
        self.undisturbed: list[float] = []

    def block(self, load: Load) -> float:
        """Seconds from the first byte sent to the last one of the last answer. Connections are new, and made before."""
        request = self._request(load)
        with ExitStack() as stack:
            answers = {stack.enter_context(self._dial()): bytearray() for _ in range(load.connections)}
            selector = stack.enter_context(selectors.DefaultSelector())
            time.sleep(SETTLED)
            cpu, begun = self._cpu(), time.perf_counter()
            for connection in answers:
                connection.sendall(request)
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
            arrived = _read_all(selector, answers)
            took = time.perf_counter() - begun
            self.spent.append(self._cpu() - cpu)
        counted = b'"completion_tokens":%d' % load.tokens
        for answer in answers.values():
            if not answer.startswith(b"HTTP/1.1 200") or counted not in answer:
                raise ValueError(f"not an answer of {load.tokens} tokens: {bytes(answer[:300])!r}")
        self.undisturbed.append(
            undisturbed([[at - begun for at in each] for each in arrived.values()], load.tokens)
        )
        return took

    def _request(self, load: Load) -> bytes:
        asked = {
            "model": load.model,
            "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse."}],
            "max_tokens": load.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(asked).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def undisturbed(arrivals: list[list[float]], tokens: int) -> float:
    """Seconds of a block of streams had each token after the first taken what it does in the middle three quarters of all steps."""
    steps = [_steps(times, tokens) for times in arrivals]
    gaps = sorted(later - earlier for times in steps for earlier, later in pairwise(times))
    if len(gaps) < 3:  # all of it came at once
        return max(times[-1] for times in arrivals)
    cut = -(-len(gaps) // 8)
    return fmean(times[0] for times in steps) + (tokens - 1) * fmean(gaps[cut : len(gaps) - cut])


def _steps(times: list[float], tokens: int) -> list[float]:
    """When the engine's steps arrived: events of one step may come in several reads."""
    close = (times[-1] - times[0]) / tokens / 4
    steps = times[:1]
    for at in times[1:]:
        if at - steps[-1] > close:
            steps.append(at)
    return steps


def _read_all(
    selector: selectors.BaseSelector, answers: dict[socket.socket, bytearray]
) -> dict[socket.socket, list[float]]:
    """Read to the ends; when events arrived on each."""
    arrived: dict[socket.socket, list[float]] = {connection: [] for connection in answers}
    while selector.get_map():
        ready = selector.select(PATIENCE)
        if not ready:
            raise TimeoutError(f"no bytes for {PATIENCE} s")
        for one, _ in ready:
            connection = cast(socket.socket, one.fileobj)
            known = max(0, len(answers[connection]) - len(_EVENT) + 1)  # an event may come in several reads
            if _read(connection, answers[connection]):
                selector.unregister(connection)
            if _EVENT in answers[connection][known:]:
                arrived[connection].append(time.perf_counter())
    return arrived


def _read(connection: socket.socket, answer: bytearray) -> bool:
    """Take what has come, of TLS one record; whether that was the end. What is left makes the selector speak again."""
    try:
        data = connection.recv(65536)
    except (BlockingIOError, ssl.SSLWantReadError):  # TLS: a session's ticket, or part of a record
        return False
    if not data:
        raise ConnectionError(f"closed after {len(answer)} bytes: {bytes(answer[:300])!r}")
    answer += data
    return answer.endswith(_END)


def over_unix(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(str(path))
    return connection


def over_tls(context: ssl.SSLContext, port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)  # as HTTP clients do
    return context.wrap_socket(connection)
