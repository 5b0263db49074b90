"""What changed from one policy to another, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from attestation.policy import Policy
from client_sdk.policy_sentences import sentence, table_of, words_of
from client_sdk.policy_words import TABLES, Words


def differences(old: Policy, new: Policy) -> Iterator[str]:
    """One line for each thing that is accepted or demanded otherwise; `-` what was, `+` what is."""
    for name, _, title, words in TABLES:
        before, after = table_of(old, name), table_of(new, name)
        if before == after or ("." in name and None in (before, after)):
            continue
        yield f"[{name}] {title}"
        if before is None:
            yield "  + judged by a table of its own, where there was none"
        elif after is None:
            yield "  - no table any more"
        else:
            yield from _changes(before, after, words)


def _changes(before: Any, after: Any, words: Words) -> Iterator[str]:
    for spec in fields(before):
        was, now = getattr(before, spec.name), getattr(after, spec.name)
        if was == now:
            continue
        if isinstance(was, frozenset | tuple) and isinstance(now, frozenset | tuple):
            yield from (f"  - {spec.name}: {words_of(item)}" for item in was if item not in now)
            yield from (f"  + {spec.name}: {words_of(item)}" for item in now if item not in was)
        else:
            yield f"  - {sentence(words[spec.name], was)}  ({spec.name})"
            yield f"  + {sentence(words[spec.name], now)}  ({spec.name})"
