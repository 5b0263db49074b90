"""`attested explain`: why a machine measures something else than it should; the first event that differs, and what makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from attestation.errors import AttestationError
from attestation.measure import Role
from attestation.measure.explain import Change, Comparison, Difference, Register, State, explain
from attestation.references import read_references
from attestation.release import Release
from client_sdk.boots import Shown, read_boot, release_of, releases_of, told_by_report
from client_sdk.commands.ending import leave
from client_sdk.evidence_policy import read_policy
from client_sdk.exits import ExitCode
from client_sdk.files import read_file, read_raw
from client_sdk.present import clean, plain
from client_sdk.terms import references_of

_NO_LOG_SNP = (
    "an SEV-SNP launch digest is one value over the firmware, the kernel, the initrd, the command line, and the number, type and "
    "first state of the vCPUs: nothing tells which of them is another one. Compare the files' digests with the release's "
    "(`enclave-server refs show --json`), and the shape with the VM's"
)
_REGISTERS = {
    "MRTD": "the firmware's code. Another firmware file, or another build of it",
    "RTMR0": "the firmware's settings: memory, ACPI tables (CPUs and devices), boot variables, Secure Boot's keys",
    "RTMR1": "what was started: the kernel, and the marks of its start",
    "RTMR2": "the command line and the initrd",
    "RTMR3": "what was measured after the start: the serving seal, or something else that runs in the VM",
    "PCR4": "what was started: the kernel or the unified kernel image, and the marks of its start",
    "PCR5": "the disk's partition table, and the marks of leaving the firmware",
    "PCR7": "Secure Boot's state and keys",
    "PCR9": "the command line and the initrd, as the kernel got them",
    "PCR11": "the sections of a unified kernel image",
    "PCR12": "what came from outside of a unified kernel image: another command line, credentials",
}
_ADVICE = {
    Role.KERNEL: "Another kernel, or one whose header the VMM has filled in: see whether it is that of another profile, and compare the file's digest with the build's",
    Role.INITRD: "Another initrd: of another build, or one to which the boot stub has added files",
    Role.COMMAND_LINE: "It carries the configuration's digest and the root's hash: see first whether this is another `enclave.toml` or image. One character is enough, also a space. A VMM and its firmware put `initrd=initrd` before or behind the line: another profile, if nothing else differs",
    Role.FIRMWARE: "The firmware's settings follow the machine: CPUs, memory, devices, boot entries, Secure Boot's keys",
    Role.MARK: "A mark, which is the same in every boot: an event beside it is missing, or one too many",
    Role.RUNTIME: "Measured by what runs in the VM, after the start",
    Role.DSTACK: "Measured by what runs in the VM, after the start",
    Role.OTHER: "",
}


def explain_boot(
    evidence: Annotated[
        Path,
        typer.Argument(help="An evidence document, TDX quote, SNP report, Azure evidence, or event log."),
    ],
    refs: Annotated[
        Path | None,
        typer.Option("--refs", metavar="FILE", help="Reference values, signed or as they were measured."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Or a policy, with the references that it names."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option("--log", metavar="FILE", help="The event log, where the evidence has none.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every profile and shape, not only the nearest.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say why a machine measures something else than a release should: the first event that differs, and what makes it.

    Nothing is verified: neither the evidence nor who signed the references. Leaves with 0 when all that was predicted is as
    it was measured, and with 1 when something differs.
    """
    if (refs is None) == (policy is None):
        raise typer.BadParameter("say what it should measure: either --refs, for releases, or --policy")
    try:
        shown = read_boot(read_file(evidence), read_raw(log) if log is not None else b"")
        releases = _expected(refs, policy)
    except AttestationError as error:
        leave(error, as_json=as_json)
    found = explain(shown.boot, releases)
    same = bool(found) and found[0].same
    nearest = found if every else _nearest(found)
    if as_json:
        cells = [
            {"release": c.release, "cell": _cell(c), "same": c.same, "registers": plain(c.registers)}
            for c in nearest
        ]
        said = {"judged": False, "platform": shown.boot.platform, "same": same, "cells": cells}
        typer.echo(json.dumps({**said, "notes": list(_notes(shown, found, releases))}))
    else:
        for line in _told(shown, nearest, found, releases):
            typer.echo(clean(line))
    raise typer.Exit(ExitCode.ACCEPT if same else ExitCode.DIFFERS)


def _expected(refs: Path | None, policy: Path | None) -> tuple[Release, ...]:
    if refs is not None:
        return releases_of(read_references(read_raw(refs)))
    if policy is None:
        return ()
    accepted = read_policy(policy)
    named = references_of(accepted, policy.parent)
    return (*(releases_of(named) if named is not None else ()), release_of(accepted))


def _nearest(found: Sequence[Comparison]) -> Sequence[Comparison]:
    """The one to show: none where several have nothing in common with the boot, for none of those is nearer than another."""
    return found[:1] if len(found) == 1 or any(one.alike or one.same for one in found) else ()


def _told(
    shown: Shown, nearest: Sequence[Comparison], found: Sequence[Comparison], releases: Sequence[Release]
) -> Iterator[str]:
    yield f"{shown.boot.platform}: compared, not verified"
    if not found:
        yield f"The references say nothing of {shown.boot.platform}: there is nothing to compare with"
    elif not nearest:
        yield f"Nothing matches: no value and no file of these {len(found)} is what was measured (--all compares each)"
        yield from (f"  {one.title}" for one in found)
    for number, comparison in enumerate(nearest):
        yield f"{comparison.title} {_verdict(comparison, found, first=number == 0)}"
        for register in comparison.registers:
            yield from (f"  {line}" for line in _register(register))
    for note in _notes(shown, nearest, releases):
        yield f"note: {note}"


def _verdict(comparison: Comparison, found: Sequence[Comparison], *, first: bool) -> str:
    if comparison.same:
        return "is what was measured"
    if not comparison.alike:
        return "has nothing in common with what was measured"
    as_near = sum(one.distance == comparison.distance for one in found) - 1
    return (
        ("is nearest" + (f", as near as {as_near} more (--all)" if as_near else "")) if first else "differs"
    )


def _register(register: Register) -> Iterator[str]:
    if register.state is State.NOT_PREDICTED:
        yield f"{register.name}: {register.state}: {register.reason}"
        return
    if register.state is not State.DIFFERS or register.difference is None:
        yield f"{register.name}: {register.state}{f': {register.what}' if register.what else ''}"
    if register.state is State.DIFFERS and register.difference is not None:
        yield from _difference(register.name, register.difference)
    elif register.state is State.DIFFERS:
        yield f"  should be  {register.expected.hex() if register.expected else 'unknown'}"
        yield f"  was        {register.found.hex() if register.found else 'unknown'}"
        yield from (f"  which is {where}" for where in register.known[:3])
        if register.sources:
            yield f"  made by {', '.join(register.sources)}"
        if register.name in _REGISTERS:
            yield f"  it holds {_REGISTERS[register.name]}"


def _difference(name: str, difference: Difference) -> Iterator[str]:
    expected, found = difference.expected, difference.found
    yield f"{name}: differs at event {difference.position}: {_CHANGES[difference.change]}"
    if expected is not None:
        digest = expected.sha256 if name.startswith("PCR") else expected.sha384
        yield f"  should be  {expected.what}, {digest.hex() if digest else 'not computed'}"
    if found is not None:
        text = (
            found.data.decode("utf-16-le" if b"\0" in found.data[1:2] else "utf-8", "replace")
            if found.data
            else ""
        )
        yield f"  was        {found.role}, {found.digest.hex()}{f': {text!r}' if text.isprintable() and text else ''}"
        known = () if found.role is Role.MARK else difference.known[:3]
        yield from (f"  which is the {where}" for where in known)
    if expected is not None and expected.source:
        yield f"  made by {expected.source}"
    if found is not None and difference.change is not Change.MISSING and _ADVICE[found.role]:
        yield f"  {_ADVICE[found.role]}"


_CHANGES = {
    Change.CHANGED: "it is another one",
    Change.ADDED: "there is one that should not be",
    Change.MISSING: "one that should come does not, and those after it do",
    Change.ORDER: "the right ones, in another order",
    Change.ENDS: "the log ends before it",
}


def _notes(shown: Shown, found: Sequence[Comparison], releases: Sequence[Release]) -> Iterator[str]:
    yield from shown.notes
    if shown.report is not None and not (found and found[0].same):
        yield _NO_LOG_SNP
        yield from told_by_report(shown.report, releases)


def _cell(comparison: Comparison) -> dict[str, str]:
    cell = comparison.cell
    return {"profile": cell.profile, "shape": cell.shape, "boot": cell.boot}
