"""JSON from strangers: bounded in size and depth, no duplicate keys, no NaN, one error type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.scanner import make_scanner
from typing import Any

from attestation.checks import Check
from attestation.errors import MalformedError

MAX_DEPTH = 32
_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_PLAIN = bytes(set(range(256)) - set(b'[]{}"'))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate keys")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_SPACE = " \t\n\r"


def json_reader(decoder: json.JSONDecoder) -> Callable[[str], Any]:
    """Reads texts that are one value, as `decoder` does and in less time; ValueError for what is none, RecursionError for what is too deep."""
    scan = make_scanner(decoder)  # type: ignore[arg-type]  # as the decoder makes its own

    def read(text: str) -> Any:
        text = text.strip(_SPACE)
        try:
            value, end = scan(text, 0)
        except StopIteration:
            raise ValueError("a value is missing") from None
        if end != len(text):
            raise ValueError("something follows its end")
        return value

    return read


_read = json_reader(json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant))
quoted = json.encoder.encode_basestring_ascii
# What `json.dumps` makes anew for each text, which takes three times as long as the text.
_parts = json.encoder.c_make_encoder(None, None, quoted, None, ":", ",", False, False, False)  # type: ignore[attr-defined]


def dump_json(value: Any) -> str:
    """ASCII, without spaces. Of values that hold no float that is no number, and do not hold themselves."""
    return "".join(_parts(value, 0))


def _check_depth(text: str) -> None:
    """Judged before parsing, so that the parser never recurses further than MAX_DEPTH."""
    data = text.encode("utf-8", "surrogatepass")
    if b"\\" in data:  # outside of strings there is no backslash in JSON
        data = _ESCAPED.sub(b"", data)
    brackets = b"".join(
        data.translate(_ONE_KIND, _PLAIN).split(b'"')[::2]
    )  # every other piece is inside a string
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # takes the innermost level off
    if brackets:
        raise ValueError(f"unbalanced, or nested deeper than {MAX_DEPTH}")


def parse_json(data: bytes | str, check: Check, what: str, *, limit: int) -> Any:
    if len(data) > limit:
        raise MalformedError(check, f"{what}: {len(data)} bytes, the limit is {limit}")
    try:
        text = data.decode() if isinstance(data, bytes) else data
        if text.count("{") + text.count("[") > MAX_DEPTH:  # only these can be deep
            _check_depth(text)
        return _read(text)
    except (ValueError, RecursionError) as exc:
        raise MalformedError(check, f"{what}: not acceptable JSON ({exc})") from exc


def parse_json_object(data: bytes | str, check: Check, what: str, *, limit: int) -> dict[str, Any]:
    value = parse_json(data, check, what, limit=limit)
    if not isinstance(value, dict):
        raise MalformedError(check, f"{what}: expected a JSON object, found {type(value).__name__}")
    return value
