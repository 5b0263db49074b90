"""The identities that live, and their rollover: a successor is made before the current identity ends, for as long as it runs.

The parent makes a successor one overlap before the current statement's end and sends it to every worker through a socket
pair made before the fork. A worker has it from then on, makes evidence for it, and says so in memory that all share; when
all have, the parent writes there that the successor is the current one: at one moment for everybody, so no client can see the
new identity and then the old one. The old one still answers those who verified it, until its statement ends.

Keys are in the memory of these processes and nowhere else. A worker that is replaced has what its parent has.
"""

from __future__ import annotations

import itertools
import mmap
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from enclave_server.identity import SKEW, Identity
from enclave_server.log import failure, log
from enclave_server.provisioning import Secrets
from enclave_server.settings import Settings

STATE = "statement"  # where a request's ASGI state has the digest of the statement that it is to be answered under
_WORD = 8
_MAX_PACKED = 4096
_POLL_SECONDS, _LONGEST_SECONDS, _RETRY_SECONDS = 0.2, 60.0, 5.0
_Clock = Callable[[], float]


class Identities:
    """What one process knows of them. Numbers count them from 1; which one is current is shared memory."""

    def __init__(
        self, first: Identity, *, workers: int = 1, overlap: float = 7200, clock: _Clock = time.time
    ) -> None:
        self._clock, self._overlap = clock, overlap
        self._known, self._numbers = {1: first}, itertools.count(2)
        self._memory = mmap.mmap(-1, (1 + workers) * _WORD)
        self._shared = memoryview(self._memory).cast(
            "Q"
        )  # the current one; for each worker, the last prepared
        self._shared[0] = 1
        self.worker = 0  # its number, from 0
        self.inbox: socket.socket | None = None  # of a worker: readable when there is something to `receive`

    @property
    def current(self) -> Identity:
        """The one that new connections and evidence are about. It may have ended, when it has no successor."""
        number = self._shared[0]
        if number not in self._known:
            self.receive()
        return self._known[number]

    @property
    def newest(self) -> Identity:
        """The current one, or its successor while that is being prepared."""
        return self._known[max(self._known)]

    def alive(self, statement: bytes) -> Identity | None:
        """The one with this statement digest, when it may still answer."""
        now = self._clock()
        for identity in list(self._known.values()):  # in one step: metrics are asked in a thread
            if identity.statement_digest == statement:
                return identity if identity.seconds_left(now) > 0 else None
        return None

    def seconds_left(self, identity: Identity) -> float:
        """For how long it may still answer."""
        return identity.seconds_left(self._clock())

    def leaving(self, statement: bytes) -> bool:
        """It has ended or ends soon, and another one is there to go over to."""
        if statement == self.current.statement_digest:
            return False
        identity = self.alive(statement)
        return identity is None or self.seconds_left(identity) < self._overlap / 4

    @property
    def age(self) -> float:
        """Seconds since the current one was made."""
        return self._clock() - self.current.statement.not_before - SKEW

    @property
    def left(self) -> float:
        """Seconds until the current one ends; below 0 when it has."""
        return self.seconds_left(self.current)

    @property
    def unready(self) -> str | None:
        """Why clients should not come: its end is near or past, and there is no successor."""
        if self.left <= 0:
            return "identity_expired"
        return "identity_ending" if self.left < self._overlap / 4 else None

    @property
    def count(self) -> int:
        return len(self._known)

    def forget(self) -> list[Identity]:
        """Drop the keys of those before the current one that have ended; which these were."""
        now, current = self._clock(), self._shared[0]
        ended = [n for n, one in self._known.items() if n < current and one.seconds_left(now) <= 0]
        return [self._known.pop(number) for number in ended]

    def drop(self) -> None:
        """In a process that answers nobody: it keeps no key."""
        self._known.clear()

    # ---------------------------------------------------------------------------------------- a worker's part

    def listen(self, worker: int, inbox: socket.socket) -> None:
        """In the worker, after the fork."""
        self.worker, self.inbox = worker, inbox

    def receive(self) -> bool:
        """Take what the parent sent. False when it will send nothing more."""
        with suppress(BlockingIOError):
            while self.inbox is not None:
                data = self.inbox.recv(_MAX_PACKED)
                if not data:
                    return False
                self._known[int.from_bytes(data[:_WORD], "big")] = self.newest.unpacked(data[_WORD:])
        return True

    def prepared(self, identity: Identity) -> None:
        """This worker has evidence for it."""
        number = next((n for n, one in self._known.items() if one is identity), 0)
        self._shared[1 + self.worker] = max(self._shared[1 + self.worker], number)

    # ------------------------------------------------------------------------------------------ the parent's part

    def add(self, identity: Identity) -> bytes:
        """A successor, known here from now on; what to send to the workers."""
        number = next(self._numbers)
        self._known[number] = identity
        return number.to_bytes(_WORD, "big") + identity.pack()

    def take_over(self) -> None:
        """The newest one becomes the current one, everywhere at once."""
        self._shared[0] = max(self._known)

    def begin_worker(self, worker: int) -> None:
        """Before the fork: the new process has prepared nothing yet."""
        self._shared[1 + worker] = 0

    def who_prepared(self) -> set[int]:
        """The workers that have evidence for the newest one."""
        newest = max(self._known)
        return {worker for worker, number in enumerate(self._shared[1:]) if number == newest}


class Succession:
    """The parent's part: makes successors in time, and hands them to its workers."""

    def __init__(
        self,
        identities: Identities,
        secrets: Secrets,
        *,
        life: timedelta,
        overlap: float,
        clock: _Clock = time.time,
    ) -> None:
        self._identities, self._secrets, self._clock = identities, secrets, clock
        self._life, self._overlap = life, overlap
        self._outboxes: dict[int, socket.socket] = {}  # by worker

    @classmethod
    def of(
        cls, settings: Settings, first: Identity, clock: _Clock = time.time, secrets: Secrets | None = None
    ) -> tuple[Identities, Succession]:
        """Both parts, for the workers of the settings, and for the secrets that these may be given."""
        secrets = secrets or Secrets(settings)
        life, overlap = timedelta(hours=settings.identity_hours), settings.identity_overlap_minutes * 60
        identities = Identities(first, workers=settings.workers, overlap=overlap, clock=clock)
        return identities, cls(identities, secrets, life=life, overlap=overlap, clock=clock)

    def begin_worker(self, worker: int) -> socket.socket:
        """Before the fork of a worker, also of one that replaces another. Its end, which it gives to `enter`."""
        self.end_worker(worker)
        outbox, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outbox.setblocking(False)
        inbox.setblocking(False)
        self._outboxes[worker] = outbox
        self._identities.begin_worker(worker)
        return inbox

    def enter(self, worker: int, inbox: socket.socket) -> None:
        """In the worker, after the fork: nobody else can send to the others, or hear what is sent to it."""
        for outbox in self._outboxes.values():
            outbox.close()
        self._outboxes.clear()
        self._identities.listen(worker, inbox)

    def leave(self) -> None:
        """In a child that is no worker, after the fork. What it needs of the secrets, it drops itself."""
        self._identities.drop()

    def end_worker(self, worker: int) -> None:
        """It has died."""
        if (outbox := self._outboxes.pop(worker, None)) is not None:
            outbox.close()

    def step(self) -> float:
        """Do what is due; in how many seconds to come again."""
        identities, now = self._identities, self._clock()
        for ended in identities.forget():
            log.info("identity ended", statement=ended.statement_digest.hex())
        current = identities.current
        left = current.seconds_left(now)
        if identities.newest is current or identities.newest.seconds_left(now) <= 0:
            if left > self._overlap and current.statement.secrets == self._secrets.digest:
                longest = _POLL_SECONDS if self._secrets.missing else _LONGEST_SECONDS
                return min(left - self._overlap, longest)
            try:
                self._make(now)
            except Exception as exc:  # noqa: BLE001 - the current identity stays, and the next attempt is near
                log.error("identity has no successor", **failure(exc))
                return _RETRY_SECONDS
        if self._prepared(left):
            identities.take_over()
            log.info("identity takes over", statement=identities.current.statement_digest.hex())
        return _POLL_SECONDS

    def _make(self, now: float) -> None:
        identities = self._identities
        moment = datetime.fromtimestamp(now, UTC)
        packed = identities.add(identities.current.successor(self._life, moment, self._secrets.digest))
        log.info("identity made", statement=identities.newest.statement_digest.hex())
        for outbox in self._outboxes.values():
            with suppress(OSError):  # it has died, and its replacement is forked with this identity
                outbox.send(packed)

    def _prepared(self, left: float) -> bool:
        """All workers are; or some, and those that hang have taken half of the overlap."""
        prepared = self._identities.who_prepared()
        return bool(prepared) and (prepared >= self._outboxes.keys() or left < self._overlap / 2)
