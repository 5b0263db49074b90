"""The rollover between a parent and its workers, in real processes, by a clock that the test sets."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from enclave_server.identities import Identities, Succession
from enclave_server.identity import Identity, make_identity
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings
from tests.processes import forked, links
from tests.servers import gateway_settings

LIFE, OVERLAP = 1000.0, 100.0


class Clock:
    """Unix seconds."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Parent:
    """A parent with its workers, each a process that does what it is told and says which identities it has."""

    def __init__(self, first: Identity, clock: Clock, workers: int = 2) -> None:
        self.first, self.clock = first, clock
        self.identities = Identities(first, workers=workers, overlap=OVERLAP, clock=clock)
        none = Secrets(Settings.model_construct())
        self.succession = Succession(
            self.identities, none, life=timedelta(seconds=LIFE), overlap=OVERLAP, clock=clock
        )
        self.workers: dict[int, tuple[int, socket.socket]] = {}  # process, and the line to it
        for number in range(workers):
            self.fork(number)

    def fork(self, number: int) -> None:
        inbox = self.succession.begin_worker(number)
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def worker() -> None:
            here.close()
            self.succession.enter(number, inbox)
            while order := there.recv(100):
                there.send(hexed(work(self.identities, order)))

        pid = forked(worker)
        there.close()
        inbox.close()
        self.workers[number] = pid, here

    def tell(self, worker: int, order: bytes) -> bytes:
        """Have it done, and hear which identity the worker then holds for the current or the newest one."""
        _, line = self.workers[worker]
        line.send(order)
        return line.recv(1000)

    def currents(self) -> set[bytes]:
        """Of the parent and of all workers."""
        told = {self.tell(worker, b"current") for worker in self.workers}
        return told | {hexed(self.identities.current)}

    def kill(self, worker: int) -> None:
        """The parent hears of it only by `end_worker`."""
        pid, line = self.workers.pop(worker)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        line.close()

    def close(self) -> None:
        for worker in list(self.workers):
            self.kill(worker)
            self.succession.end_worker(worker)

    def until(self, left: float) -> float:
        """Set the clock to so many seconds before the end of the current statement."""
        self.clock.now = self.identities.current.statement.not_after - 1 - left
        return self.succession.step()


def work(identities: Identities, order: bytes) -> Identity:
    """What a worker does."""
    if order == b"current":
        return identities.current
    identities.receive()
    if order == b"prepare":
        identities.prepared(identities.newest)
    return identities.newest


def hexed(identity: Identity) -> bytes:
    return identity.statement_digest.hex().encode()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    settings = gateway_settings(tmp_path_factory.mktemp("identity"))
    identity = make_identity(settings, engine_version="1")
    return identity.successor(timedelta(seconds=LIFE), datetime.fromtimestamp(Clock().now, UTC))


@pytest.fixture
def start(first: Identity) -> Iterator[Callable[..., Parent]]:
    """Parents with the first identity; their workers end with the test."""
    parents: list[Parent] = []

    def started(workers: int = 2) -> Parent:
        parents.append(Parent(first, Clock(), workers))
        return parents[-1]

    yield started
    for parent in parents:
        parent.close()


def test_not_before_the_overlap(start: Callable[..., Parent]) -> None:
    """No successor is made before it is time; the parent comes again by then, and at least every minute."""
    parent = start()
    assert parent.until(OVERLAP + 600) == 60
    assert parent.until(OVERLAP + 7) == pytest.approx(7)
    assert parent.identities.newest is parent.first


def test_takes_over_when_all_have_evidence(start: Callable[..., Parent]) -> None:
    """The successor is made one overlap before the end, and is current nowhere until every worker is prepared; then everywhere."""
    parent = start()
    assert parent.until(OVERLAP) < 1
    second = parent.identities.newest
    assert second is not parent.first
    assert parent.tell(0, b"prepare") == parent.tell(1, b"receive") == hexed(second)
    parent.succession.step()
    assert parent.currents() == {hexed(parent.first)}
    parent.tell(1, b"prepare")
    parent.succession.step()
    assert parent.currents() == {hexed(second)}
    assert parent.succession.step() == 60


def test_the_old_one_answers_until_its_end(start: Callable[..., Parent]) -> None:
    """Both are alive in the overlap; at its end the old one is neither found nor kept."""
    parent = start(workers=1)
    parent.until(OVERLAP)
    parent.tell(0, b"prepare")
    parent.succession.step()
    old = parent.first.statement_digest
    parent.clock.now = parent.first.statement.not_after - 1.5
    assert parent.identities.alive(old) is parent.first
    assert parent.identities.leaving(old)
    assert parent.identities.forget() == []
    parent.clock.now += 1
    assert parent.identities.alive(old) is None
    assert parent.identities.forget() == [parent.first]
    assert parent.identities.count == 1
    assert parent.identities.alive(bytes(32)) is None


def test_many_times(start: Callable[..., Parent]) -> None:
    """Again and again, and never are more than two alive."""
    parent, seen = start(workers=1), set[bytes]()
    for _ in range(5):
        seen |= parent.currents()
        parent.until(OVERLAP)
        assert parent.identities.count == 2
        parent.tell(0, b"prepare")
        parent.succession.step()
    assert len(seen | parent.currents()) == 6


def test_worker_dies_while_keys_are_handed_over(start: Callable[..., Parent]) -> None:
    """Its replacement has both identities from the fork, and the successor waits until it is prepared as well."""
    parent = start()
    parent.kill(0)
    parent.until(OVERLAP)
    second = parent.identities.newest
    parent.tell(1, b"prepare")
    parent.succession.step()
    assert parent.identities.current is parent.first
    parent.fork(0)
    assert parent.tell(0, b"current") == hexed(parent.first)
    parent.succession.step()
    assert parent.identities.current is parent.first, "the new worker has no evidence yet"
    assert parent.tell(0, b"prepare") == hexed(second)
    parent.succession.step()
    assert parent.currents() == {hexed(second)}


def test_worker_dies_after_it_was_prepared(start: Callable[..., Parent]) -> None:
    """What the dead one had prepared does not count for the one in its place."""
    parent = start()
    parent.until(OVERLAP)
    parent.tell(0, b"prepare")
    parent.kill(0)
    parent.succession.end_worker(0)
    parent.fork(0)
    parent.tell(1, b"prepare")
    parent.succession.step()
    assert parent.identities.current is parent.first


def test_worker_hangs(start: Callable[..., Parent]) -> None:
    """One that hangs keeps the others waiting for half of the overlap; when it wakes up it finds the successor in its inbox."""
    parent = start()
    parent.until(OVERLAP)
    second = parent.identities.newest
    parent.tell(0, b"prepare")
    parent.until(OVERLAP / 2 + 1)
    assert parent.identities.current is parent.first
    parent.until(OVERLAP / 2 - 1)
    assert parent.identities.current is second
    assert parent.tell(1, b"current") == hexed(second)


def test_nobody_can_make_evidence(start: Callable[..., Parent]) -> None:
    """Nothing takes over that nobody could verify: readiness ends before the statement does, and comes back."""
    parent, unready = start(workers=1), []
    for left in (OVERLAP / 2, OVERLAP / 5, 0):
        parent.until(left)
        unready.append(parent.identities.unready)
    assert unready == [None, "identity_ending", "identity_expired"]
    assert parent.identities.current is parent.first
    parent.tell(0, b"prepare")
    parent.succession.step()
    assert not parent.identities.unready
    assert parent.currents() == {hexed(parent.identities.newest)}


def test_a_successor_that_nobody_prepared_ends_too(start: Callable[..., Parent]) -> None:
    """Then another is made, and what was prepared for the first of them does not count for it."""
    parent = start(workers=1)
    parent.until(OVERLAP)
    second = parent.identities.newest
    parent.clock.now = second.statement.not_after + 1
    parent.tell(0, b"receive")
    parent.succession.step()
    third = parent.identities.newest
    assert third not in {parent.first, second}
    assert parent.identities.current is parent.first
    assert parent.tell(0, b"prepare") == hexed(third)
    parent.succession.step()
    assert parent.identities.current is third
    assert parent.identities.forget() == [parent.first, second]


def test_keys_cannot_be_made(start: Callable[..., Parent], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent lives on, with the identity it has, and tries again in a few seconds."""
    parent = start(workers=1)

    def broken(*_: object) -> Identity:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Identity, "successor", broken)
        assert parent.until(OVERLAP) == 5
    assert parent.identities.newest is parent.first
    parent.succession.step()
    assert parent.identities.newest is not parent.first


def sockets(pid: int) -> set[str]:
    return {link for link in links(pid) if link.startswith("socket:")}


def test_nobody_else_hears(start: Callable[..., Parent]) -> None:
    """No worker holds the parent's end of a line, its own or another's: none can speak to the others, or hear for them."""
    others = sockets(os.getpid())  # of tests before this one, perhaps: every child has those
    parent = start(workers=3)
    tests_own = {os.fstat(line.fileno()).st_ino for _, line in parent.workers.values()}
    parents = sockets(os.getpid()) - {f"socket:[{number}]" for number in tests_own} - others
    assert len(parents) >= 3
    for worker, (pid, _) in parent.workers.items():
        parent.tell(worker, b"current")
        assert not sockets(pid) & parents
