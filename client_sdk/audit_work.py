"""The work of `attested audit`: pieces of it, one process or many, and a tally of what came out.

Each process verifies the evidence of an enclave once, and reads what it audits itself: little goes between processes.
"""

from __future__ import annotations

import multiprocessing
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from attestation._json import parse_json_object
from attestation.audit import Audited, Auditor, judge_again
from attestation.bundle import MAX_BUNDLE_BYTES, Bundle, open_bundle, parse_bundle, parse_exchange
from attestation.checks import Check
from attestation.disclosure import PURPOSE as DISCLOSURE
from attestation.disclosure import Disclosure, as_bundle, audit_disclosure, load_disclosure
from attestation.errors import AttestationError, MalformedError, UnavailableError, VerificationError
from attestation.policy import Policy
from client_sdk.exits import ExitCode, exit_code

_NO_BUNDLE = "`attested chat --save` and `Attestation.save` write saved answers; `attested inspect` says what other files are"
FILES_AT_ONCE = 32
EXCHANGES_AT_ONCE = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One exchange that does not hold, or a file that could not be read."""

    file: str
    exchange: int
    code: ExitCode
    check: str
    detail: str
    advice: str = ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came out of some exchanges."""

    exchanges: int = 0
    refused: list[Refused] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)  # of those that hold
    statements: set[str] = field(default_factory=set)
    digests_only: int = 0  # saved without all of their bytes
    logged: int = 0  # shown to be in the enclave's log
    simulated: bool = False
    today: set[str] = field(default_factory=set)  # why evidence would be refused now
    disclosed: list[tuple[str, Disclosure]] = field(default_factory=list)  # by file; only those that hold

    @property
    def held(self) -> int:
        return self.exchanges - len(self.refused)

    def add(self, other: Tally) -> None:
        self.exchanges += other.exchanges
        self.refused += other.refused
        self.outcomes += other.outcomes
        self.statements |= other.statements
        self.digests_only += other.digests_only
        self.logged += other.logged
        self.simulated = self.simulated or other.simulated
        self.today |= other.today
        self.disclosed += other.disclosed

    def refuse(self, path: Path, number: int, error: AttestationError) -> None:
        self.exchanges += 1
        self.refused.append(
            Refused(
                file=str(path),
                exchange=number,
                code=exit_code(error),
                check=str(error.check),
                detail=error.detail,
                advice=error.advice,
            )
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms exchanges are audited."""

    policy: Policy
    at: datetime | None = None
    today: datetime | None = None
    logged: bool = False  # what is not shown to be in the enclave's log is refused


@dataclass(frozen=True, slots=True)
class Saved:
    """A bundle whose exchanges are still to be parsed, one by one."""

    bundle: Bundle
    exchanges: Sequence[object]


def read_saved(path: Path) -> Saved | Disclosure:
    """What is saved in a file. One that cannot be read leaves the question open: UnavailableError."""
    data = read_raw_saved(path)
    with _known_as_a_bundle():
        raw = parse_json_object(data, Check.BUNDLE_FORMAT, "bundle", limit=MAX_BUNDLE_BYTES)
        return load_disclosure(raw) if raw.get("purpose") == DISCLOSURE else Saved(*open_bundle(raw))


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file. One that cannot be read leaves the question open: UnavailableError."""
    data = read_raw_saved(path)
    with _known_as_a_bundle():
        return parse_bundle(data)


@contextmanager
def _known_as_a_bundle() -> Iterator[None]:
    """Whoever gives another kind of file is told where such files come from."""
    try:
        yield
    except MalformedError as exc:
        if exc.check is not Check.BUNDLE_FORMAT:
            raise
        raise MalformedError(exc.check, exc.detail, advice=_NO_BUNDLE) from exc


def read_raw_saved(path: Path) -> bytes:
    """The bytes of such a file, at most one more than it may have."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            size = state.st_size if stat.S_ISREG(state.st_mode) else MAX_BUNDLE_BYTES
            return file.read(min(size, MAX_BUNDLE_BYTES) + 1)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise UnavailableError(Check.BUNDLE_FORMAT, f"{path}: {reason or 'cannot be read'}") from exc


class Worker:
    """Audits on the same terms, in one process."""

    def __init__(self, terms: Terms, saved: Saved | None = None) -> None:
        self._terms, self._saved = terms, saved
        self._auditor = Auditor(terms.policy, at=terms.at)
        self._today: dict[tuple[str, bytes], str | None] = {}

    def work(self, task: Task) -> Tally:
        tally = Tally()
        if self._saved is not None:
            self._exchanges(task.paths[0], self._saved, task.exchanges, tally)
            return tally
        for path in task.paths:
            try:
                saved = read_saved(path)
            except AttestationError as error:
                tally.refuse(path, 0, error)
                continue
            if isinstance(saved, Disclosure):
                self._disclosure(path, saved, tally)
            else:
                self._exchanges(path, saved, range(len(saved.exchanges)), tally)
        return tally

    def _exchanges(self, path: Path, saved: Saved, numbers: Iterable[int], tally: Tally) -> None:
        for number in numbers:
            try:
                exchange = parse_exchange(saved.exchanges[number])
                audited = self._auditor.audit(saved.bundle, exchange)
                self._demand_log(audited)
                self._hold(saved.bundle, audited, tally)
            except AttestationError as error:
                tally.refuse(path, number, error)
            else:
                tally.digests_only += not (audited.request_compared and audited.response_compared)

    def _disclosure(self, path: Path, disclosure: Disclosure, tally: Tally) -> None:
        try:
            audited = audit_disclosure(self._auditor, disclosure)
            self._demand_log(audited)
            self._hold(as_bundle(disclosure)[0], audited, tally)
        except AttestationError as error:
            tally.refuse(path, 0, error)
        else:
            tally.disclosed.append((str(path), disclosure))

    def _hold(self, bundle: Bundle, audited: Audited, tally: Tally) -> None:
        receipt, verdict = audited.receipt, audited.verdict
        statement = receipt.statement.hex()
        today = self._judge_today(bundle, statement)
        tally.exchanges += 1
        tally.logged += audited.logged
        tally.outcomes[receipt.outcome.value] += 1
        tally.statements.add(statement)
        tally.simulated = tally.simulated or verdict.simulated
        if today is not None:
            tally.today.add(today)

    def _demand_log(self, audited: Audited) -> None:
        if self._terms.logged and not audited.logged:
            raise VerificationError(
                Check.LOG_MISSING, "there is no proof that the receipt is in the enclave's log"
            )

    def _judge_today(self, bundle: Bundle, statement: str) -> str | None:
        """What the evidence would be refused for now, by its own collateral."""
        if self._terms.today is None:
            return None
        key = (statement, bundle.nonce)
        if key not in self._today:
            try:
                judge_again(bundle, self._terms.policy, now=self._terms.today)
                self._today[key] = None
            except AttestationError as error:
                self._today[key] = str(error)
        return self._today[key]


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work: some files, or some exchanges of the one file that every process has."""

    paths: Sequence[Path]
    exchanges: range = range(0)

    @property
    def size(self) -> int:
        return len(self.exchanges) or len(self.paths)


def _unheard(_done: int, _of: int) -> None:
    """Nobody wants to know."""


def audit_path(
    path: Path, terms: Terms, jobs: int, progress: Callable[[int, int], object] = _unheard
) -> Tally:
    """Audit the bundle in a file, or all files of a folder; `progress` hears how many of how many are done."""
    tasks, saved = _tasks_of(path)
    tally, of, done = Tally(), sum(task.size for task in tasks), 0
    with _pool(terms, saved, min(jobs, len(tasks))) as run:
        for task, found in zip(tasks, run(tasks), strict=True):
            tally.add(found)
            done += task.size
            progress(done, of)
    return tally


def _tasks_of(path: Path) -> tuple[list[Task], Saved | None]:
    """Pieces of work: files of a folder, or exchanges of one file, which is read once for all processes."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        return [Task(files[i : i + FILES_AT_ONCE]) for i in range(0, len(files), FILES_AT_ONCE)], None
    saved = read_saved(path)
    if isinstance(saved, Disclosure):
        return [Task([path])], None
    numbers, some = range(len(saved.exchanges)), EXCHANGES_AT_ONCE
    return [Task([path], numbers[i : i + some]) for i in range(0, len(numbers), some)], saved


_workers: list[Worker] = []  # the one of this process


def _start(terms: Terms, saved: Saved | None) -> None:
    _workers[:] = [Worker(terms, saved)]


def _work(task: Task) -> Tally:
    return _workers[0].work(task)


@contextmanager
def _pool(
    terms: Terms, saved: Saved | None, jobs: int
) -> Iterator[Callable[[Sequence[Task]], Iterator[Tally]]]:
    """A single task is not worth a second process."""
    if jobs <= 1:
        yield lambda tasks: map(Worker(terms, saved).work, tasks)
        return
    # forked where that is safe: then a file that was read is in every process without being sent there
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(jobs, context, initializer=_start, initargs=(terms, saved)) as pool:
        yield lambda tasks: pool.map(_work, tasks)
