"""TOML tables to frozen dataclasses: unknown keys, wrong types and wrong lengths are errors that name the key.

Field types understood: bool, int, str, bytes (written in hex), StrEnum, tuple[X, ...], frozenset[X], X | None,
Mapping[str, Any] (taken as it is) and nested dataclasses. `field(metadata={"size": n})` fixes the length of bytes (also inside a tuple or frozenset).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

from attestation.checks import Check
from attestation.errors import MalformedError

T = TypeVar("T")


def load_table(cls: type[T], table: object, where: str, check: Check = Check.POLICY_FORMAT) -> T:
    """Build the dataclass `cls` from a parsed TOML table; `where` names the table in errors."""
    if not isinstance(table, Mapping):
        raise MalformedError(check, f"[{where}] must be a table, found {type(table).__name__}")
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]  # callers pass dataclasses
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise MalformedError(check, f"[{where}] has unknown keys {unknown}; known are {sorted(known)}")
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    values = {}
    for name, spec in known.items():
        if name in table:
            values[name] = _convert(
                hints[name], table[name], f"{where}.{name}", spec.metadata.get("size"), check
            )
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise MalformedError(check, f"[{where}] lacks the required key {name!r}")
    return cls(**values)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; reading them anew for each receipt would cost more than its signature."""
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: object, where: str, size: int | None, check: Check) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        inner = next(a for a in args if a is not type(None))
        return None if value is None else _convert(inner, value, where, size, check)
    if origin in {tuple, frozenset}:
        items = _exactly(list, value, where, check)
        return origin(_convert(args[0], v, f"{where}[{i}]", size, check) for i, v in enumerate(items))
    if origin is Mapping:
        return _exactly(dict, value, where, check)
    if isinstance(hint, type) and is_dataclass(hint):
        return load_table(hint, value, where, check)
    if hint is bytes:
        return _bytes(value, where, size, check)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _member(hint, value, where, check)
    return _exactly(hint, value, where, check)


def _exactly(kind: type[T], value: object, where: str, check: Check) -> T:
    """Exactly this type: a TOML true is no int."""
    if type(value) is not kind:
        raise MalformedError(check, f"{where} must be {kind.__name__}, found {type(value).__name__}")
    return value


def _member(kind: type[StrEnum], value: object, where: str, check: Check) -> StrEnum:
    if not isinstance(value, str) or value not in list(kind):
        raise MalformedError(check, f"{where} must be one of {[str(m) for m in kind]}, found {value!r}")
    return kind(value)


def _bytes(value: object, where: str, size: int | None, check: Check) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        data = None
    if data is None or (size is not None and len(data) != size):
        length = f"{size} bytes of " if size is not None else ""
        raise MalformedError(check, f"{where} must be {length}hex, found {value!r}")
    return data
