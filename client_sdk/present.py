"""An outcome for people: one line for each link of the chain of trust, and what is wrong in words.

A link is shown as passed only where the outcome proves that it was reached and held. A check stops the chain, so
everything after a refused link is "not reached"; a link that was left out for want of collateral is never "passed".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attestation.checks import Check
from attestation.errors import AttestationError, PolicyError, UnavailableError
from attestation.roots import Root, is_vendor


class State(StrEnum):
    """What is known of one link."""

    PASSED = "passed"
    REFUSED = "REFUSED"
    UNDECIDED = "could not decide"
    NOT_REACHED = "not reached"


_STYLES = {
    State.PASSED: "green",
    State.REFUSED: "bold red",
    State.UNDECIDED: "yellow",
    State.NOT_REACHED: "dim",
}


@dataclass(frozen=True, slots=True)
class Link:
    """One step of a verification, in the order of the code: the checks that may fail in it.

    A check is named in full, or by its family with a dot at the end ("gpu.").
    """

    title: str
    checks: tuple[str, ...]

    def covers(self, check: Check) -> bool:
        return any(check == name or (name.endswith(".") and check.startswith(name)) for name in self.checks)


@dataclass(frozen=True, slots=True)
class Line:
    """One link with its state, to be shown."""

    title: str
    state: State


POLICY = "what the policy accepts"


def walk(
    links: Sequence[Link], error: AttestationError | None, *, skipped: Collection[str] = ()
) -> list[Line]:
    """The state of each link. `skipped` are titles of links left out. The policy's is the last and needs no checks."""
    lines = [*links, Link(POLICY, ())]
    stop = _where(lines, error)
    result = []
    for position, link in enumerate(lines):
        if error is not None and position == stop:
            state = State.UNDECIDED if isinstance(error, UnavailableError) else State.REFUSED
        elif position < stop and link.title not in skipped:
            state = State.PASSED
        else:
            state = State.NOT_REACHED
        result.append(Line(link.title, state))
    if error is not None and stop < 0:  # a check that no link names: nothing is known to have passed
        result.insert(0, Line(f"[{error.check}]", _refusal(error)))
    return result


def _where(links: Sequence[Link], error: AttestationError | None) -> int:
    if error is None:
        return len(links)
    if isinstance(error, PolicyError):
        return len(links) - 1
    return next((i for i, link in enumerate(links) if link.covers(error.check)), -1)


def _refusal(error: AttestationError) -> State:
    return State.UNDECIDED if isinstance(error, UnavailableError) else State.REFUSED


def show(
    console: Console,
    what: str,
    lines: Iterable[Line],
    error: AttestationError | None,
    notes: Iterable[str] = (),
) -> None:
    """Print one outcome: headline, chain, reasons, what to do, and what this outcome does not say."""
    if error is None:
        say(console, Text(f"ACCEPTED  {clean(what)}", style="bold green"))
    elif isinstance(error, UnavailableError):
        say(console, Text(f"COULD NOT DECIDE  {clean(what)}", style="bold yellow"))
    else:
        say(console, Text(f"REFUSED  {clean(what)}", style="bold red"))
    table = Table.grid(padding=(0, 2))
    for line in lines:
        state = Text(line.state, style=_STYLES[line.state], no_wrap=True)
        table.add_row("", Text(clean(line.title)), state)
    console.print(table)
    for reason in reasons(error):
        say(console, Text(clean(reason)), hang=4)
    for note in notes:
        say(console, Text(f"note: {clean(note)}", style="dim"), hang=6)


def say(console: Console, text: Text, *, hang: int = 0) -> None:
    """One line: whole where a program may read it; on a terminal broken between words, all but its first `hang` columns."""
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        return
    head, rest = text.divide([hang]) if 0 < hang < len(text) else (Text(), text)
    for line in rest.wrap(console, max(console.width - hang, 20)):
        line.rstrip()
        console.print(head + line, soft_wrap=True)
        head = Text(" " * hang)


def working(what: str) -> AbstractContextManager[object]:
    """Say on standard error that something is under way, for as long as it takes; only to a terminal."""
    console = Console(stderr=True, highlight=False)
    return console.status(clean(what)) if console.is_terminal else nullcontext()


def reasons(error: AttestationError | None) -> list[str]:
    """What failed, in lines: every violation of a policy, or the one check, with the name that the documentation has."""
    if error is None:
        return []
    if isinstance(error, PolicyError):
        found = [
            line
            for v in error.violations
            for line in (f"[{v.check}] expected {v.expected}", f"    found {v.found}")
        ]
    else:
        found = [f"[{error.check}] {error.detail}"]
    return [*found, *([error.advice] if error.advice else [])]


def clean(text: str) -> str:
    """Text from strangers in a line of ours, with nothing in it that a terminal would obey, and no line of its own."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def clean_text(text: str) -> str:
    """The same for what a model says, whose lines are its own."""
    return "\n".join(map(clean, text.split("\n")))


def plain(value: Any) -> Any:
    """Claims as JSON has them: bytes in hex, times in RFC 3339, sets in order, a root with whether it is a vendor's.

    What a class leaves out of its repr is left out here too.
    """
    if isinstance(value, Root):
        return {"name": value.name, "spki_sha256": value.spki_sha256.hex(), "vendor": is_vendor(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.repr}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def outcome(error: AttestationError | None) -> str:
    """One word: a question that stayed open is no refusal, and no acceptance either."""
    if error is None:
        return "accept"
    return "undecided" if isinstance(error, UnavailableError) else "refuse"


def failure(error: AttestationError | None) -> dict[str, Any]:
    """The members that every `--json` has of what failed. docs/output.md lists them."""
    violations = error.violations if isinstance(error, PolicyError) else ()
    return {
        "verdict": outcome(error),
        "check": None if error is None else str(error.check),
        "detail": "" if error is None else error.detail,
        "advice": "" if error is None else error.advice,
        "violations": [{"check": str(v.check), "expected": v.expected, "found": v.found} for v in violations],
    }


def result(error: AttestationError | None, claims: object) -> dict[str, Any]:
    """The one object that `--json` prints. Claims are there when they are authentic, accepted or not."""
    return {**failure(error), "claims": {} if claims is None else plain(claims)}
