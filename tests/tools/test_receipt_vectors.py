"""docs/vectors/{binding,receipt}.json: what another implementation is held to holds for this one, and is made by its script."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestation._b64 import b64url_encode
from attestation.binding import gpu_nonce, parse_statement, report_data
from attestation.errors import AttestationError
from attestation.receipt import NONCE_HEADER, RECEIPT_HEADER, Receipt
from client_sdk.exchange import Exchange
from client_sdk.receipts import PlainCheck
from client_sdk.streams import StreamCheck
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


VERDICT: Any = SimpleNamespace(  # of it, an exchange needs no more
    statement_digest=bytes.fromhex(RECEIPT["statement"]),
    statement=SimpleNamespace(
        keys=SimpleNamespace(receipt_ed25519=bytes.fromhex(RECEIPT["key"])),
        model=SimpleNamespace(digest=bytes.fromhex(RECEIPT["model"])),
    ),
)
NOW = datetime.fromtimestamp(TIME, UTC)


def verified(case: dict[str, Any]) -> Receipt | None:
    """The receipt of a case, checked as the client does."""
    nonce = bytes.fromhex(case["nonce"])
    exchange = Exchange(
        verdict=VERDICT,
        nonce=nonce,
        method=case["method"],
        path=case["path"],
        body=case["request"].encode(),
    )
    headers = {NONCE_HEADER: b64url_encode(nonce)}
    if case["stream"]:
        stream = StreamCheck(exchange, case["status"], headers)
        list(stream.feed(case["response"].encode(), NOW))
        stream.finish(NOW)
        return stream.receipt
    plain = PlainCheck(exchange, case["status"], {**headers, RECEIPT_HEADER: case["receipt"]})
    plain.feed(case["response"].encode())
    plain.finish(NOW)
    return plain.receipt


@pytest.mark.parametrize("case", RECEIPT["accepted"], ids=lambda case: case["name"])
def test_accepted(case: dict[str, Any]) -> None:
    """Plain, streamed and refused early."""
    receipt = verified(case)
    assert receipt is not None
    assert receipt.time == TIME


@pytest.mark.parametrize("case", RECEIPT["refused"], ids=lambda case: case["name"])
def test_refused(case: dict[str, Any]) -> None:
    """Each by the check that is about what was changed."""
    with pytest.raises(AttestationError) as caught:
        verified(case)
    assert caught.value.check == case["check"]


def test_the_verifier_in_javascript_agrees() -> None:
    """client_sdk/web/verify_receipt.mjs gives each vector's outcome, and fails where a vector says something else."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    files = [FOLDER / "receipt.json", FOLDER / "binding.json"]
    command: list[str | Path] = [node, "--no-warnings", ROOT / "client_sdk/web/verify_receipt.mjs", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    receipts = sum(len(RECEIPT[name]) for name in ("accepted", "refused", "tokens"))
    cases = receipts + 3 * len(BINDING["cases"])
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
        ROOT / "client_sdk/web/verify_receipt.mjs",
        tmp_path / "receipt.json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("FAIL another key: receipt.signature, expected accepted")
