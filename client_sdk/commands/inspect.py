"""`attested inspect FILE`: any evidence in words, read and not judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from attestation.errors import AttestationError
from client_sdk.commands.ending import leave
from client_sdk.commands.options import AsJson, EvidenceFile
from client_sdk.describe import describe
from client_sdk.files import read_file
from client_sdk.present import clean

_LONG = 2 * 64  # hex digits that are still shown in full: a report_data has 64 bytes
_MANY = 4  # values that still stand on one line


def inspect(
    file: EvidenceFile,
    as_json: AsJson = False,
) -> None:
    """Say what a file is and what it says. Nothing is verified: anyone could have written it."""
    try:
        described = describe(read_file(file))
    except AttestationError as exc:
        leave(exc, as_json=as_json)
    if as_json:
        typer.echo(json.dumps({"kind": described.kind, "judged": False, "content": described.content}))
        return
    typer.echo(
        f"{described.kind}: read, not judged. No signature was checked; anyone could have written this."
    )
    for line in _lines(described.content, 1):
        typer.echo(clean(line))


def _lines(value: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Nested values as indented lines; long byte strings by their length."""
    indent = "  " * depth
    for name, item in value.items():
        match item:
            case dict() if item:
                yield f"{indent}{name}:"
                yield from _lines(item, depth + 1)
            case [dict(), *_]:
                for number, entry in enumerate(item):
                    yield f"{indent}{name} {number}:"
                    yield from _lines(entry, depth + 1)
            case [str(), *_] if len(item) > _MANY:
                for number, entry in enumerate(item):
                    yield f"{indent}{name} {number}: {_short(entry)}"
            case list():
                yield f"{indent}{name}: {', '.join(map(_short, item)) or 'none'}"
            case _:
                yield f"{indent}{name}: {_short(item)}"


def _short(value: Any) -> str:
    text = "none" if value is None or value in ("", {}) else str(value)
    if len(text) > _LONG and all(c in "0123456789abcdef" for c in text):
        return f"{text[:32]}… ({len(text) // 2} bytes)"
    return text
