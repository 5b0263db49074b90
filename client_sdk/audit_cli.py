"""`attested audit FILE|DIR`: saved exchanges verified again, offline, one or many, with every core."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from attestation.audit import Auditor, judge_again
from attestation.bundle import MAX_BUNDLE_BYTES, Bundle, SavedExchange, parse_bundle
from attestation.checks import Check
from attestation.errors import AttestationError, UnavailableError
from attestation.policy import Policy
from client_sdk.exits import ExitCode, exit_code
from client_sdk.files import parse_time
from client_sdk.present import clean
from client_sdk.transport import load_policy

FILES_AT_ONCE = 32
EXCHANGES_AT_ONCE = 250
SHOWN = 20  # refused exchanges that are told one by one; --json has all
_GRAVEST_FIRST = (ExitCode.NOT_AUTHENTIC, ExitCode.MALFORMED, ExitCode.POLICY, ExitCode.UNDECIDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What became of one exchange, or of a file that could not be read."""

    file: str
    exchange: int
    code: ExitCode = ExitCode.ACCEPT
    check: str | None = None
    detail: str = ""
    receipt: str = ""
    outcome: str = ""
    statement: str = ""
    compared: bool = False  # with the bytes of request and response, and not only their digests
    simulated: bool = False
    today: str | None = None  # what would be refused now, where that was asked


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms exchanges are audited."""

    policy: Policy
    at: datetime | None
    today: datetime | None


class Worker:
    """Audits on the same terms, in one process."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._auditor = Auditor(terms.policy, at=terms.at)
        self._today: dict[tuple[bytes, str], str | None] = {}

    def files(self, paths: Sequence[Path]) -> list[Row]:
        rows: list[Row] = []
        for path in paths:
            try:
                bundle = read_bundle(path)
            except AttestationError as error:
                rows.append(_refused(path, 0, error))
            else:
                rows += self.exchanges(path, 0, bundle)
        return rows

    def exchanges(self, path: Path, start: int, bundle: Bundle) -> list[Row]:
        return [self._exchange(path, start + i, bundle, e) for i, e in enumerate(bundle.exchanges)]

    def _exchange(self, path: Path, number: int, bundle: Bundle, exchange: SavedExchange) -> Row:
        try:
            audited = self._auditor.audit(bundle, exchange)
            receipt = audited.receipt
            when = self._terms.at or datetime.fromtimestamp(receipt.time, UTC)
            verdict = self._auditor.verdict(bundle, when)
        except AttestationError as error:
            return _refused(path, number, error)
        return Row(
            file=str(path),
            exchange=number,
            receipt=receipt.id,
            outcome=str(receipt.outcome),
            statement=receipt.statement.hex(),
            compared=audited.request_compared and audited.response_compared,
            simulated=verdict.simulated,
            today=self._judge_today(bundle, receipt.statement),
        )

    def _judge_today(self, bundle: Bundle, statement: bytes) -> str | None:
        """What the evidence would be refused for now, by its own collateral."""
        if self._terms.today is None:
            return None
        key = (statement, bundle.nonce.hex())
        if key not in self._today:
            try:
                judge_again(bundle, self._terms.policy, now=self._terms.today)
                self._today[key] = None
            except AttestationError as error:
                self._today[key] = str(error)
        return self._today[key]


_workers: list[Worker] = []  # the one of this process


def _start(terms: Terms) -> None:
    _workers[:] = [Worker(terms)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A piece of work: some files, or some exchanges of one that was read already."""

    paths: Sequence[Path]
    bundle: Bundle | None = None
    start: int = 0  # the number of the bundle's first exchange in its file


def _work(task: Task) -> list[Row]:
    worker = _workers[0]
    if task.bundle is not None:
        return worker.exchanges(task.paths[0], task.start, task.bundle)
    return worker.files(task.paths)


def audit(
    path: Annotated[Path, typer.Argument(metavar="FILE|DIR", help="A bundle, or a folder of them (*.json).")],
    policy: Annotated[
        Path, typer.Option("--policy", metavar="FILE", help="What you accept (TOML); see docs/policy.md.")
    ],
    at: Annotated[
        datetime | None,
        typer.Option("--at", parser=parse_time, metavar="TIME", help="In place of each receipt's own time."),
    ] = None,
    today: Annotated[bool, typer.Option("--today", help="Also say what would be refused now.")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=0, metavar="N", help="Processes; one for each core unless given.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Verify saved exchanges again: evidence as of each receipt's time, receipts, and the saved bytes. Offline."""
    try:
        terms = Terms(load_policy(policy), at, datetime.now(UTC) if today else None)
        tasks = list(tasks_of(path))
    except AttestationError as error:
        rows = [_refused(path, 0, error)]
    else:
        rows = audit_all(tasks, terms, jobs or os.cpu_count() or 1, Console(stderr=True))
    code = gravest(rows)
    if as_json:
        typer.echo(json.dumps(summary(rows)))
    else:
        for line in _words(rows):
            typer.echo(clean(line))
    raise typer.Exit(code)


def audit_all(tasks: Sequence[Task], terms: Terms, jobs: int, console: Console) -> list[Row]:
    """Every task's rows, in order. A single task is not worth a second process."""
    rows: list[Row] = []
    with _pool(terms, min(jobs, len(tasks))) as run:
        results = run(tasks)  # forks before the progress bar has a thread
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("auditing", total=len(tasks))
            for result in results:
                rows += result
                progress.advance(bar)
    return rows


@contextmanager
def _pool(terms: Terms, jobs: int) -> Iterator[Callable[[Sequence[Task]], Iterator[list[Row]]]]:
    if jobs <= 1:
        _start(terms)
        yield lambda tasks: map(_work, tasks)
        return
    with ProcessPoolExecutor(jobs, initializer=_start, initargs=(terms,)) as pool:
        yield lambda tasks: pool.map(_work, tasks)


def tasks_of(path: Path) -> Iterator[Task]:
    """Pieces of work: files of a folder, or exchanges of one file."""
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise typer.BadParameter(f"{path} has no *.json")
        for i in range(0, len(files), FILES_AT_ONCE):
            yield Task(paths=files[i : i + FILES_AT_ONCE])
        return
    bundle = read_bundle(path)
    for i in range(0, len(bundle.exchanges), EXCHANGES_AT_ONCE):
        some = replace(bundle, exchanges=bundle.exchanges[i : i + EXCHANGES_AT_ONCE])
        yield Task(paths=[path], bundle=some, start=i)


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file. One that cannot be read leaves the question open: UnavailableError."""
    try:
        with path.open("rb") as file:
            return parse_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except OSError as exc:
        raise UnavailableError(Check.BUNDLE_FORMAT, f"{path}: {exc.strerror or 'cannot be read'}") from exc


def gravest(rows: Sequence[Row]) -> ExitCode:
    """One exit code for many outcomes."""
    found = {row.code for row in rows}
    return next((code for code in _GRAVEST_FIRST if code in found), ExitCode.ACCEPT)


def summary(rows: Sequence[Row]) -> dict[str, object]:
    """The one object that `--json` prints."""
    held = [row for row in rows if row.code is ExitCode.ACCEPT]
    return {
        "verdict": "refuse" if len(held) < len(rows) else "accept",
        "exchanges": len(rows),
        "held": len(held),
        "digests_only": sum(not row.compared for row in held),
        "outcomes": dict(Counter(row.outcome for row in held)),
        "statements": sorted({row.statement for row in held}),
        "simulated": any(row.simulated for row in held),
        "refused": [
            {key: asdict(row)[key] for key in ("file", "exchange", "check", "detail")}
            for row in rows
            if row.code is not ExitCode.ACCEPT
        ],
        "today": sorted({row.today for row in held if row.today is not None}),
    }


def _words(rows: Sequence[Row]) -> Iterator[str]:
    held = [row for row in rows if row.code is ExitCode.ACCEPT]
    refused = [row for row in rows if row.code is not ExitCode.ACCEPT]
    enclaves = len({row.statement for row in held})
    head = "REFUSED" if refused else "ACCEPTED"
    yield f"{head}  {len(held)} of {len(rows)} exchanges hold, with {enclaves} statement(s) of enclaves"
    for outcome, count in sorted(Counter(row.outcome for row in held).items()):
        yield f"  {outcome}: {count}"
    for row in refused[:SHOWN]:
        yield f"{row.file}, exchange {row.exchange}: [{row.check}] {row.detail}"
    if len(refused) > SHOWN:
        yield f"… and {len(refused) - SHOWN} more (--json lists all)"
    if bare := sum(not row.compared for row in held):
        yield f"note: {bare} were saved without all of their bytes: their digests stand, and nothing was compared with them"
    if any(row.simulated for row in held):
        yield "note: SIMULATED: a root that is no hardware vendor's; this proves nothing about hardware"
    for reason in sorted({row.today for row in held if row.today is not None}):
        yield f"today: the evidence would be refused: {reason}"


def _refused(path: Path, number: int, error: AttestationError) -> Row:
    return Row(
        file=str(path), exchange=number, code=exit_code(error), check=str(error.check), detail=error.detail
    )
