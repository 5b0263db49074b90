"""TOML tables to frozen dataclasses: unknown keys, wrong types and wrong lengths are errors that name the key.

Field types understood: bool, int, str, bytes (written in hex), datetime (with an offset), StrEnum, tuple[X, ...], frozenset[X], X | None,
Mapping[str, Any] (taken as it is) and nested dataclasses. `field(metadata={"size": n})` fixes the length of bytes (also inside a tuple or frozenset).

What a class's fields are is found out once: a receipt is read in less time than its signature takes.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache, partial
from typing import Any, TypeVar

from attestation.checks import Check
from attestation.errors import MalformedError

T = TypeVar("T")
_Read = Callable[[Any], Any]
_UNKNOWN = (
    "See how it is spelt; or it is for a later version than this one, which cannot know what it demands"
)


class _MisfitError(Exception):
    """A value that does not fit; on its way up it learns where in the table it stands."""

    def __init__(self, detail: str, *, table: bool = False, advice: str = "") -> None:
        super().__init__(detail)
        self.detail, self.table, self.path, self.advice = detail, table, "", advice

    def told(self, where: str) -> str:
        place = where + self.path
        return f"[{place}] {self.detail}" if self.table else f"{place} {self.detail}"


def load_table(cls: type[T], table: object, where: str, check: Check = Check.POLICY_FORMAT) -> T:
    """Build the dataclass `cls` from a parsed TOML table; `where` names the table in errors."""
    try:
        value: T = _table_reader(cls)(table)  # type: ignore[arg-type]  # a class is hashable
    except _MisfitError as misfit:
        raise MalformedError(check, misfit.told(where), advice=misfit.advice) from None
    return value


@cache
def _table_reader(cls: type) -> _Read:
    hints = typing.get_type_hints(cls)
    known = {f.name: _reader(hints[f.name], f.metadata.get("size")) for f in fields(cls)}
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    # with the type whose values are taken as they are; these names are the very ones that `cls` compares its own with
    each = [(name, hints[name] if hints[name] in {bool, int, str} else None, known[name]) for name in known]

    def read(table: Any) -> Any:
        if type(table) is not dict and not isinstance(table, Mapping):  # the latter asks an ABC, slowly
            raise _MisfitError(f"must be a table, found {type(table).__name__}", table=True)
        values = {}
        for name, exact, read_other in each:
            value = table.get(name, MISSING)
            if type(value) is exact:
                values[name] = value
            elif value is not MISSING:
                try:
                    values[name] = read_other(value)
                except _MisfitError as misfit:
                    misfit.path = f".{name}{misfit.path}"
                    raise
            elif name in required:
                raise _wrong_keys(table, known, name)
        if len(values) != len(table):
            raise _wrong_keys(table, known)
        return cls(**values)

    return read


def _wrong_keys(table: Mapping[Any, Any], known: Mapping[str, _Read], missing: str = "") -> _MisfitError:
    if table.keys() <= known.keys():
        return _MisfitError(f"lacks the required key {missing!r}", table=True)
    unknown, names = (sorted(map(repr, keys)) for keys in (table.keys() - known.keys(), known))
    told = f"has unknown keys {', '.join(unknown)}; known are {', '.join(names)}"
    return _MisfitError(told, table=True, advice=_UNKNOWN)


def _reader(hint: Any, size: int | None) -> _Read:
    """What reads a value of a field of this type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        inner = _reader(next(a for a in args if a is not type(None)), size)
        return lambda value: None if value is None else inner(value)
    if origin in {tuple, frozenset}:
        return partial(_items, origin, _reader(args[0], size))
    if origin is Mapping:
        return partial(_exactly, dict)
    if isinstance(hint, type) and is_dataclass(hint):
        return _table_reader(hint)
    if hint is bytes:
        return partial(_bytes, size)
    if hint is datetime:
        return _time
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return partial(_member, {str(member): member for member in hint})
    return partial(_exactly, hint)


def _items(kind: type, read_one: _Read, value: Any) -> Any:
    items, read = _exactly(list, value), []
    try:
        for item in items:
            read.append(read_one(item))  # noqa: PERF401 - how many were read tells which one does not fit
    except _MisfitError as misfit:
        misfit.path = f"[{len(read)}]{misfit.path}"
        raise
    return kind(read)


def _exactly(kind: type[T], value: object) -> T:
    """Exactly this type: a TOML true is no int."""
    if type(value) is not kind:
        raise _MisfitError(f"must be {kind.__name__}, found {type(value).__name__}")
    return value


def _member(members: Mapping[str, StrEnum], value: object) -> StrEnum:
    member = members.get(value) if isinstance(value, str) else None
    if member is None:
        raise _MisfitError(f"must be one of {list(members)}, found {value!r}")
    return member


def _time(value: object) -> datetime:
    with suppress(OverflowError):  # the offset may lead out of the years that there are
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
    raise _MisfitError(f"must be a date and time with an offset, found {value!r}")


def _bytes(size: int | None, value: object) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        data = None
    if data is None or (size is not None and len(data) != size):
        length = f"{size} bytes of " if size is not None else ""
        raise _MisfitError(f"must be {length}hex, found {value!r}")
    return data
