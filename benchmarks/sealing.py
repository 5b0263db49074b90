"""What a seal costs the gateway: CPU time of its process per answer, sealed and unsealed in turn, in one run.

    python -m benchmarks.sealing [--rounds 5] [--requests 300]

Against the mock engine, without TLS: plain answers of 1.2 KB, and streams of 128 events. The client's own work is done
before and after the clock runs. Lengths are those of the bodies on the wire.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from attestation import sealed
from attestation.binding import Statement, parse_statement
from attestation.evidence import parse_evidence
from attestation.sealed_answer import AnswerOpener
from attestation.sealed_head import RequestHead
from attestation.sealed_ticket import ASK, HEADER, Ticket, parse_ticket
from benchmarks.contenders import Contender, mock_engine, ours

PACE_US = 2_000
CHAT = "/v1/chat/completions"
ASK_FOR_TICKET = (HEADER, ASK)
MESSAGES = [{"role": "user", "content": "words " * 300}]  # a request of 1.9 KB


class Client:
    """One connection to the gateway, and what is needed to seal to it."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.http = HTTPConnection(contender.target)
        document = self._call("GET", "/.well-known/attestation", b"", {})
        text = parse_evidence(document).statement
        self.statement: Statement = parse_statement(text)
        self.digest = sha256(text).digest()
        self.key = contender.headers[0].partition(": ")[2]

    def _call(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        self.http.request(method, path, body, headers)
        answer = self.http.getresponse()
        data = answer.read()
        assert answer.status == 200, data  # noqa: S101
        return data

    def unsealed(self, body: bytes, count: int) -> float:
        headers = {"Authorization": self.key, "Content-Type": "application/json"}
        before = self.contender.cpu_seconds()
        for _ in range(count):
            self._call("POST", CHAT, body, headers)
        return (self.contender.cpu_seconds() - before) / count * 1e6

    def seal(
        self, body: bytes, suite: sealed.Suite = sealed.X_WING, ticket: Ticket | None = None
    ) -> tuple[bytes, AnswerOpener]:
        """A request; one with a ticket asks for the next, as the SDK's do."""
        headers = (("authorization", self.key), ("content-type", "application/json"))
        now, statement = datetime.now(UTC), self.digest
        if ticket is not None:
            head = RequestHead(method="POST", target=CHAT, headers=(*headers, ASK_FOR_TICKET))
            return sealed.seal_with_ticket(head, body, ticket=ticket, statement=statement, now=now)
        head = RequestHead(method="POST", target=CHAT, headers=headers)
        keys = self.statement.keys
        return sealed.seal_request(head, body, keys=keys, statement=statement, now=now, suite=suite)

    def ticket(self) -> Ticket:
        """One that an answer brought."""
        head = RequestHead(method="POST", target=CHAT, headers=(("authorization", self.key), ASK_FOR_TICKET))
        how: dict[str, Any] = {
            "keys": self.statement.keys,
            "statement": self.digest,
            "now": datetime.now(UTC),
        }
        data, opener = sealed.seal_request(head, b'{"model":"mock","messages":[]}', **how)
        self.http.close()  # it may have rested for longer than the gateway keeps one
        opener.feed(self._call("POST", sealed.PATH, data, {"Content-Type": sealed.REQUEST_TYPE}))
        assert opener.head is not None  # noqa: S101
        return parse_ticket(dict(opener.head.headers)[HEADER])

    def sealed(self, body: bytes, count: int, suite: sealed.Suite) -> float:
        ticket = self.ticket() if suite is sealed.TICKET else None
        requests = [self.seal(body, suite, ticket) for _ in range(count)]
        answers = []
        before = self.contender.cpu_seconds()
        for data, _ in requests:
            answers.append(self._call("POST", sealed.PATH, data, {"Content-Type": sealed.REQUEST_TYPE}))
        cost = (self.contender.cpu_seconds() - before) / count * 1e6
        for (_, opener), answer in zip(requests, answers, strict=True):
            opener.feed(answer)
            opener.end()
            assert opener.head is not None  # noqa: S101
            assert opener.head.status == 200  # noqa: S101
        return cost


def main(rounds: int, requests: int) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        mock_engine(Path(name)) as engine,
        ours(engine, Path(name)) as contender,
    ):
        client = Client(contender)
        compare("plain, 1.2 KB", client, False, requests, rounds)
        compare("stream, at once", client, True, max(10, requests // 10), rounds)
        engine.pace(PACE_US)
        compare("stream, event by event", client, True, 5, rounds)


def compare(what: str, client: Client, stream: bool, count: int, rounds: int) -> None:
    """Each way once in every round, so that a busy machine slows all alike."""
    body = json.dumps({"model": "mock", "messages": MESSAGES, "stream": stream}).encode()
    ways: dict[str, Callable[[], float]] = {
        "unsealed": lambda: client.unsealed(body, count),
        "x-wing": lambda: client.sealed(body, count, sealed.X_WING),
        "x25519": lambda: client.sealed(body, count, sealed.X25519),
        "ticket": lambda: client.sealed(body, count, sealed.TICKET),
    }
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for name, measure in ways.items():
            found[name].append(measure())
    _print(what, found)


def _print(what: str, found: dict[str, list[float]]) -> None:
    plain = found["unsealed"]
    for way, costs in found.items():
        ratio = statistics.median(cost / base for cost, base in zip(costs, plain, strict=True))
        print(f"{what:23} {way:10} {statistics.median(costs):8.0f} µs CPU each   {ratio - 1:+7.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.requests)
