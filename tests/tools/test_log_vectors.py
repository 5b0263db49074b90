"""docs/vectors/log.json: made by the tool, and judged as it says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import AttestationError
from attestation.tlog import (
    check_logged,
    own_key,
    parse_verifier_key,
    predecessor_entry,
    receipt_entry,
    verify_checkpoint,
)
from attestation.tlog.merkle import verify_consistency
from tools.log_vectors import FILE, text

VECTORS: dict[str, Any] = json.loads(FILE.read_text())
KEY = parse_verifier_key(VECTORS["verifier_key"])


def test_the_tool_makes_the_file() -> None:
    """Byte for byte."""
    assert FILE.read_text() == text()


def test_what_holds() -> None:
    """Key, entries, checkpoints, consistency and each receipt's proof."""
    assert own_key(KEY.name) == KEY
    assert KEY.key.hex() == VECTORS["log_ed25519"]
    entries = [predecessor_entry(VECTORS["previous"].encode()), *map(receipt_entry, VECTORS["receipts"])]
    assert [entry.hex() for entry in entries] == VECTORS["entries"]
    heads = {head.size: head for head in (verify_checkpoint(t.encode(), KEY) for t in VECTORS["checkpoints"])}
    for case in VECTORS["consistency"]:
        old, new = heads[case["old"]], heads[case["new"]]
        verify_consistency(old.size, old.root, new.size, new.root, [bytes.fromhex(h) for h in case["proof"]])
    for case in VECTORS["accepted"]:
        check_logged(case["proof"].encode(), case["receipt"], KEY)


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: case["name"])
def test_what_is_refused(case: dict[str, Any]) -> None:
    """Each by the check that it names."""
    with pytest.raises(AttestationError) as error:
        check_logged(case["proof"].encode(), case["receipt"], KEY)
    assert error.value.check is Check(case["check"])
