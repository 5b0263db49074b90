"""docs/vectors/{binding,receipt}.json: what another implementation is held to holds for this one, and is made by its script."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from attestation.binding import gpu_nonce, parse_statement, report_data
from attestation.checks import Check
from attestation.errors import AttestationError, VerificationError
from attestation.receipt import (
    COMMENT,
    Outcome,
    Receipt,
    Request,
    RunningDigest,
    check_receipt,
    verify_receipt,
)
from tools.receipt_vectors import FOLDER, TIME, texts

ROOT = Path(__file__).parent.parent.parent
BINDING: dict[str, Any] = json.loads((FOLDER / "binding.json").read_text())
RECEIPT: dict[str, Any] = json.loads((FOLDER / "receipt.json").read_text())


def test_the_files_are_what_the_script_makes() -> None:
    """Nothing in them is written by hand."""
    for name, text in texts().items():
        assert (FOLDER / name).read_text() == text


@pytest.mark.parametrize("case", BINDING["cases"], ids=lambda case: case["name"])
def test_binding(case: dict[str, Any]) -> None:
    """Both digests, over the canonical statement."""
    nonce, statement = bytes.fromhex(case["nonce"]), case["statement"].encode()
    parse_statement(statement)
    assert report_data(nonce, statement, case["gpu_evidence"].encode()).hex() == case["report_data"]
    assert gpu_nonce(nonce, statement).hex() == case["gpu_nonce"]


def verified(case: dict[str, Any]) -> Receipt:
    """The receipt of a case, checked as protocol.md §4 says."""
    token, body, nonce = case["receipt"], case["response"].encode(), bytes.fromhex(case["nonce"])
    if case["stream"]:
        body, mark, rest = body.partition(COMMENT)
        token, end, more = rest.decode().partition("\n\n")
        if not mark or not end:
            raise VerificationError(Check.STREAM_TRUNCATED, "no receipt at the end")
        body += more.encode()  # whatever follows the receipt is covered by none
    receipt = verify_receipt(token, bytes.fromhex(RECEIPT["key"]))
    sent = case["request"].encode()
    asked = RunningDigest(nonce, sent[: receipt.request.length] if receipt.outcome is Outcome.ERROR else sent)
    check_receipt(
        receipt,
        statement=bytes.fromhex(RECEIPT["statement"]),
        model_digest=bytes.fromhex(RECEIPT["model"]),
        request=Request(method=case["method"], path=case["path"], digest=asked.digest(), length=asked.length),
        status=case["status"],
        response=RunningDigest(nonce, body),
        now=datetime.fromtimestamp(TIME, UTC),
    )
    return receipt


@pytest.mark.parametrize("case", RECEIPT["accepted"], ids=lambda case: case["name"])
def test_accepted(case: dict[str, Any]) -> None:
    """Plain, streamed and refused early."""
    assert verified(case).time == TIME


@pytest.mark.parametrize("case", RECEIPT["refused"], ids=lambda case: case["name"])
def test_refused(case: dict[str, Any]) -> None:
    """Each by the check that is about what was changed."""
    with pytest.raises(AttestationError) as caught:
        verified(case)
    assert caught.value.check == case["check"]


def test_the_verifier_in_javascript_agrees() -> None:
    """examples/verify_receipt.mjs gives each vector's outcome, and fails where a vector says something else."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    files = [FOLDER / "receipt.json", FOLDER / "binding.json"]
    command: list[str | Path] = [node, "--no-warnings", ROOT / "examples/verify_receipt.mjs", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    cases = len(RECEIPT["accepted"]) + len(RECEIPT["refused"]) + 3 * len(BINDING["cases"])
    assert len(lines) == cases
    assert all(line.startswith("ok ") for line in lines)


def test_the_verifier_in_javascript_can_fail(tmp_path: Path) -> None:
    """A vector that is wrong is told, so that passing means something."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    wrong = {**RECEIPT, "accepted": RECEIPT["refused"][:1]}
    (tmp_path / "receipt.json").write_text(json.dumps(wrong))
    command: list[str | Path] = [
        node,
        "--no-warnings",
        ROOT / "examples/verify_receipt.mjs",
        tmp_path / "receipt.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL another key: receipt.signature, expected accepted")
