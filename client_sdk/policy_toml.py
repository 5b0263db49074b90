"""A policy as the TOML text that reads back as the same policy. Only what differs from the defaults is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from attestation.policy import Policy


def dump_policy(policy: Policy) -> str:
    """The text; `parse_policy` gives `policy` again."""
    lines = [line for spec in fields(policy) for line in _table(spec.name, getattr(policy, spec.name), spec)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(name: str, value: Any, spec: Field[Any]) -> Iterator[str]:
    if value is None or value == default_of(spec):
        return
    yield ""
    yield f"[{name}]"
    later: list[tuple[str, Field[Any], Any]] = []
    for inner in fields(value):
        item = getattr(value, inner.name)
        if item is None or item == default_of(inner):
            continue
        if is_dataclass(item) or (isinstance(item, tuple) and item and is_dataclass(item[0])):
            later.append((f"{name}.{inner.name}", inner, item))
        else:
            yield f"{inner.name} = {_value(item)}"
    for path, inner, item in later:  # after the plain keys, which would belong to them otherwise
        yield from _list(path, item) if isinstance(item, tuple) else _table(path, item, inner)


def _list(name: str, items: tuple[Any, ...]) -> Iterator[str]:
    for item in items:
        yield ""
        yield f"[[{name}]]"
        for key, value in _members(item):
            yield f"{key} = {_value(value)}"


def _members(item: Any) -> Iterator[tuple[str, Any]]:
    for spec in fields(item):
        value = getattr(item, spec.name)
        if value is not None and value != default_of(spec):
            yield spec.name, value


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, bytes):
        return f'"{value.hex()}"'
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    if isinstance(value, str):
        return json.dumps(str(value), ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # JSON's strings are TOML's too
    if isinstance(value, frozenset):
        return f"[{', '.join(sorted(map(_value, value)))}]"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return "{ " + ", ".join(f"{name} = {_value(item)}" for name, item in _members(value)) + " }"


def default_of(spec: Field[Any]) -> Any:
    """What a field is when nothing is said; `MISSING` where something has to be said."""
    if spec.default_factory is not MISSING:
        return spec.default_factory()
    return spec.default
