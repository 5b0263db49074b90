"""A policy in sentences: what it accepts and refuses, its defaults included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any

from attestation.policy import Policy
from attestation.roots import Root, is_vendor
from client_sdk.evidence_policy import EvidencePolicy
from client_sdk.policy_toml import default_of
from client_sdk.policy_words import ABSENT, TABLES, Words

_LONG = 200


def describe_policy(policy: EvidencePolicy) -> Iterator[str]:
    """One sentence a field; `*` marks what the policy sets, the others are defaults."""
    yield "All of the following must hold. A line with * is set in the file, the others are defaults."
    for name, _, title, words in TABLES:
        table = table_of(policy, name)
        if table is None and "." in name:  # the table it belongs to has said so
            continue
        yield ""
        if table is None:
            yield f"[{name}] {title}: {ABSENT.get(name, 'refused, because the policy has no such table')}"
        else:
            yield f"[{name}] {title}"
            for name_of_field, said, is_set in _sentences(table, words):
                yield f"  {'*' if is_set else ' '} {said}  ({name_of_field})"


def tables_of(policy: EvidencePolicy) -> Iterator[dict[str, Any]]:
    """The same for programs: one object a table, one a field."""
    for name, _, title, words in TABLES:
        table = table_of(policy, name)
        said = [] if table is None else list(_sentences(table, words))
        rows = [{"field": name_of_field, "says": says, "set": is_set} for name_of_field, says, is_set in said]
        yield {"table": name, "title": title, "given": table is not None, "fields": rows}


def table_of(policy: Policy, name: str) -> Any:
    """The table with a dotted name; None where it or what holds it is missing."""
    value: Any = policy
    for part in name.split("."):
        value = None if value is None else getattr(value, part, None)
    return value


def _sentences(table: Any, words: Words) -> Iterator[tuple[str, str, bool]]:
    """Each field's name, what it says, and whether the policy sets it."""
    for spec in fields(table):
        value = getattr(table, spec.name)
        said = sentence(words[spec.name], value)
        if value is not None and spec.default is None and value == frozenset():
            said = "nothing is accepted: the list is empty"  # where no list at all would ask nothing
        yield spec.name, said, value != default_of(spec)


def sentence(words: tuple[str, str], value: Any) -> str:
    """A switch picks its words; a value fills them; nothing, none and zero are the words for "without"."""
    if isinstance(value, bool):
        return words[0] if value else words[1]
    empty = value is None or value == 0 or (isinstance(value, (str, tuple, frozenset)) and not value)
    return words[1] if empty else words[0].replace("{}", words_of(value))


def words_of(value: Any) -> str:
    """One value, as it stands in a sentence."""
    match value:
        case Root():
            vendor = "" if is_vendor(value) else ", which is NO hardware vendor's"
            return f"{value.name!r} ({value.spki_sha256.hex()[:16]}…{vendor})"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        case bytes():
            return "zero" if value and not any(value) else value.hex() or "an empty value"
        case tuple():
            return (
                " or ".join(map(words_of, value)) if not _floors(value) else "; ".join(map(words_of, value))
            )
        case frozenset():
            return " or ".join(sorted(map(words_of, value)))
        case str() if len(value) > _LONG:
            return f"a text of {len(value)} characters"
    if is_dataclass(value) and type(value).__str__ is object.__str__:
        set_fields = [
            (f.name, getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default
        ]
        return " ".join(f"{name}={words_of(v)}" for name, v in set_fields)
    return str(value)


def _floors(value: tuple[Any, ...]) -> bool:
    return bool(value) and hasattr(value[0], "tcb")
