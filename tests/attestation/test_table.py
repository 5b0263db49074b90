"""TOML tables to dataclasses: every mistake names its key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from attestation._table import load_table
from attestation.checks import Check
from attestation.errors import MalformedError
from attestation.policy import parse_policy


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    digest: bytes = field(metadata={"size": 2})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int = 0
    flag: bool = False
    colour: Colour = Colour.RED
    digests: frozenset[bytes] = field(default=frozenset(), metadata={"size": 2})
    inners: tuple[Inner, ...] = ()
    maybe: bytes | None = None
    free: Mapping[str, Any] = field(default_factory=dict)


def test_every_kind_of_field_is_read() -> None:
    """Hex, enums, lists, nested tables and optional fields become typed values."""
    table = tomllib.loads(
        """
        name = "a"
        count = 3
        flag = true
        colour = "red"
        digests = ["00ff"]
        maybe = "01"
        inners = [{digest = "beef"}]
        free = {x = 1}
        """
    )
    assert load_table(Outer, table, "t") == Outer(
        name="a",
        count=3,
        flag=True,
        digests=frozenset([b"\x00\xff"]),
        inners=(Inner(digest=b"\xbe\xef"),),
        maybe=b"\x01",
        free={"x": 1},
    )


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("", "name"),
        ("name = 1", "t.name"),
        ("name = 'a'\nnmae = 1", "nmae"),
        ("name = 'a'\ncount = true", "t.count"),
        ("name = 'a'\nflag = 1", "t.flag"),
        ("name = 'a'\ncolour = 'blue'", "t.colour"),
        ("name = 'a'\ndigests = 'beef'", "t.digests"),
        ("name = 'a'\ndigests = ['be']", r"t.digests\[0\]"),
        ("name = 'a'\ndigests = ['zzzz']", r"t.digests\[0\]"),
        ("name = 'a'\ninners = [{}]", r"t.inners\[0\]"),
        ("name = 'a'\ninners = [1]", r"t.inners\[0\]"),
        ("name = 'a'\nfree = 1", "t.free"),
    ],
)
def test_every_mistake_names_its_key(toml: str, names: str) -> None:
    """Missing, unknown and mistyped keys are errors that say which."""
    with pytest.raises(MalformedError, match=names) as error:
        load_table(Outer, tomllib.loads(toml), "t")
    assert error.value.check is Check.POLICY_FORMAT


@pytest.mark.parametrize(
    "text",
    [
        "[release]\nexpires = 0001-01-01T00:00:00+10:00",
        "[release]\nexpires = 9999-12-31T23:59:59-10:00",
        f"[release]\nepoch = {'1' * 5000}",
        "[release]\nepoch = true",
        f"a = {'[' * 5000}",
    ],
    ids=["before all years", "after all years", "endless number", "truth", "depth"],
)
def test_a_policy_that_leads_out_of_all_bounds_is_malformed(text: str) -> None:
    """Times whose offset leaves the years that there are, numbers that no machine reads: one error, as for any mistake."""
    with pytest.raises(MalformedError) as error:
        parse_policy(text)
    assert error.value.check is Check.POLICY_FORMAT
