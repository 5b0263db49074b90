"""An outcome in lines and in JSON: nothing is shown as passed that was not reached."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from attestation.checks import Check
from attestation.errors import (
    AttestationError,
    MalformedError,
    PolicyError,
    UnavailableError,
    VerificationError,
    Violation,
)
from attestation.roots import VENDOR, Root
from client_sdk import chains
from client_sdk.exits import ExitCode, exit_code
from client_sdk.present import POLICY, Link, State, clean, clean_text, plain, result, show, walk, working

LINKS = (Link("first", ("tdx.format",)), Link("second", ("snp.",)), Link("third", ("tdx.fmspc",)))
DENIED = PolicyError([Violation(Check.TDX_DEBUG, "DEBUG clear", "set"), Violation(Check.TDX_XFAM, "0", "1")])


def states(error: AttestationError | None, **options: tuple[str, ...]) -> list[str]:
    return [str(line.state) for line in walk(LINKS, error, **options)]


def test_acceptance_passes_every_link() -> None:
    """Everything was reached and held, the policy last."""
    assert states(None) == ["passed"] * 4


def test_a_refused_link_stops_the_chain() -> None:
    """What stands before it has passed, what follows was not reached."""
    error = VerificationError(Check.SNP_CHAIN, "x")
    assert states(error) == ["passed", "REFUSED", "not reached", "not reached"]


def test_a_policy_is_asked_last() -> None:
    """Its checks may belong to any family; they are refused in the policy's line."""
    assert states(DENIED) == ["passed", "passed", "passed", "REFUSED"]


def test_not_deciding_is_neither_passing_nor_refusing() -> None:
    """Missing collateral is shown as what it is."""
    error = UnavailableError(Check.TDX_FORMAT, "x")
    assert states(error) == ["could not decide", "not reached", "not reached", "not reached"]


def test_what_was_left_out_has_not_passed() -> None:
    """A link skipped for want of collateral stays not reached, in acceptance too."""
    assert states(None, skipped=("second",)) == ["passed", "not reached", "passed", "passed"]


def test_a_check_that_no_link_knows_proves_nothing() -> None:
    """Then no line may say passed."""
    lines = walk(LINKS, VerificationError(Check.RECEIPT_TIME, "x"))
    assert [line.state for line in lines] == [State.REFUSED] + [State.NOT_REACHED] * 4
    assert lines[0].title == "[receipt.time]"


@pytest.mark.parametrize(
    "chain", [chains.TDX, chains.SNP, chains.NITRO, chains.AZURE, chains.GPU, chains.TOKEN, chains.DOCUMENT]
)
def test_chains_name_checks_that_exist_once(chain: tuple[Link, ...]) -> None:
    """No name is misspelt, and no check stands in two links of one chain."""
    names = [name for link in chain for name in link.checks]
    assert len(names) == len(set(names))
    for name in names:
        assert any(c == name or (name.endswith(".") and c.startswith(name)) for c in Check), name


@dataclass
class Claims:
    root: Root
    digest: bytes
    when: datetime
    names: frozenset[str]
    numbers: tuple[int | None, ...]


def test_claims_become_plain_values() -> None:
    """Bytes in hex, times in RFC 3339, sets in order, and whether a root is a vendor's."""
    when = datetime(2026, 1, 2, tzinfo=UTC)
    stranger = Root("x", bytes(32))
    assert plain(Claims(stranger, b"\x01", when, frozenset("ba"), (1, None))) == {
        "root": {"name": "x", "spki_sha256": "00" * 32, "vendor": False},
        "digest": "01",
        "when": "2026-01-02T00:00:00Z",
        "names": ["a", "b"],
        "numbers": [1, None],
    }
    assert plain(VENDOR.intel[0])["vendor"] is True


def test_the_json_object_has_six_members() -> None:
    """Accepted or refused, a script finds the same members."""
    members = {"verdict", "check", "detail", "advice", "violations", "claims"}
    assert result(None, {"a": b"\x00"}) == {
        "verdict": "accept",
        "check": None,
        "detail": "",
        "advice": "",
        "violations": [],
        "claims": {"a": "00"},
    }
    refused = result(DENIED, None)
    assert set(refused) == members
    assert refused["verdict"] == "refuse"
    assert result(UnavailableError(Check.TDX_FORMAT, "later", advice="wait"), None)["verdict"] == "undecided"
    assert refused["violations"][1] == {"check": "tdx.xfam", "expected": "0", "found": "1"}


def test_nothing_from_strangers_commands_a_terminal() -> None:
    """Escape sequences in names and details are shown, not obeyed."""
    assert clean("a\x1b[31mb\tc\nd\u202ee") == "a\\x1b[31mb\\x09c\\x0ad\\x202ee"
    assert clean_text("a\x1b[31mb\nc\rd") == "a\\x1b[31mb\nc\\x0dd"
    out = io.StringIO()
    error = VerificationError(Check.TDX_FMSPC, "[bold]evil[/] \x1b[2J", advice="stay calm")
    show(Console(file=out), "what", walk(LINKS, error), error, ["a note"])
    text = out.getvalue()
    assert "\x1b" not in text
    assert "[tdx.fmspc] [bold]evil[/] \\x1b[2J" in text
    assert "stay calm" in text
    assert "note: a note" in text
    assert POLICY in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, ExitCode.ACCEPT),
        (MalformedError(Check.TDX_FORMAT, ""), ExitCode.MALFORMED),
        (VerificationError(Check.TDX_FORMAT, ""), ExitCode.NOT_AUTHENTIC),
        (DENIED, ExitCode.POLICY),
        (UnavailableError(Check.TDX_FORMAT, ""), ExitCode.UNDECIDED),
    ],
)
def test_each_branch_of_the_error_tree_has_its_exit_code(
    error: AttestationError | None, code: ExitCode
) -> None:
    """0, 2, 3, 4 and 5, in the order of the tree; wrong usage is none of them."""
    assert exit_code(error) == code != ExitCode.USAGE


def test_the_documentation_has_every_exit_code() -> None:
    """docs/output.md lists what a script may rely on."""
    page = (Path(__file__).parent.parent.parent / "docs" / "output.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == sorted(ExitCode)


def test_nothing_from_strangers_is_a_line_of_its_own() -> None:
    """A name with line breaks in it stays in its line: what looks like another link or note is not one."""
    forged = "x\n  what the policy accepts  passed\r\nACCEPTED  https://enclave"
    wrong: list[AttestationError] = [
        VerificationError(Check.TDX_FMSPC, forged, advice=forged),
        PolicyError([Violation(Check.POLICY_MODEL, forged, forged)], advice=forged),
    ]
    for error in wrong:
        out = io.StringIO()
        show(Console(file=out), forged, walk(LINKS, error), error, [forged])
        lines = out.getvalue().splitlines()
        assert not [line for line in lines if line.startswith(("ACCEPTED", f"  {POLICY}  passed"))]
        assert lines[0].startswith("REFUSED  x\\x0a")


def test_a_narrow_terminal_breaks_between_words() -> None:
    """Columns stay columns; where a program may read them, lines are whole."""
    error = VerificationError(
        Check.TDX_FMSPC, "expected one platform and found quite another one", advice="Ask"
    )
    for terminal in (True, False):
        out = io.StringIO()
        console = Console(file=out, width=40, force_terminal=terminal, no_color=True, highlight=False)
        show(console, "what", walk(LINKS, error), error, ["a note of so many words that they do not fit"])
        lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in out.getvalue().splitlines()]
        assert (max(map(len, lines)) <= 40) is terminal
        assert ("      do not fit" in lines) is terminal
        assert ("note: a note of so many words that they do not fit" in lines) is not terminal
        assert [line for line in lines if line.startswith("  ")]


@pytest.mark.parametrize("terminal", [True, False])
def test_slow_work_is_told_of_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """On standard error, with nothing from strangers that a terminal would obey; and colours only there."""
    err, out = io.StringIO(), io.StringIO()
    err.isatty = out.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", err)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with working("asking \x1b[31menclave"):
        pass
    assert ("asking \\x1b[31menclave" in err.getvalue()) is terminal
    show(Console(file=out), "what", walk(LINKS, None), None)
    assert ("\x1b[" in out.getvalue()) is terminal
    monkeypatch.setenv("NO_COLOR", "1")
    out.seek(0)
    out.truncate()
    show(Console(file=out), "what", walk(LINKS, None), None)
    assert not re.search(r"\x1b\[[\d;]*3[0-9]m", out.getvalue())
