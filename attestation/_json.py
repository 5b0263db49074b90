"""JSON from strangers: bounded in size and depth, no duplicate keys, no NaN, one error type."""

from __future__ import annotations

import json
from typing import Any

from attestation.checks import Check
from attestation.errors import MalformedError

MAX_DEPTH = 32


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _nesting(text: str) -> int:
    """Depth counted before parsing, so that the parser never recurses further than MAX_DEPTH."""
    depth = deepest = 0
    in_string = escaped = False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def parse_json(data: bytes | str, check: Check, what: str, *, limit: int) -> Any:
    if len(data) > limit:
        raise MalformedError(check, f"{what}: {len(data)} bytes, the limit is {limit}")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        # only deep documents pay for the exact count
        if text.count("{") + text.count("[") > MAX_DEPTH and _nesting(text) > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise MalformedError(check, f"{what}: not acceptable JSON ({exc})") from exc


def parse_json_object(data: bytes | str, check: Check, what: str, *, limit: int) -> dict[str, Any]:
    value = parse_json(data, check, what, limit=limit)
    if not isinstance(value, dict):
        raise MalformedError(check, f"{what}: expected a JSON object, found {type(value).__name__}")
    return value
