"""Real attestation documents get the verdicts that their manifest expects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.nitro import NitroMeasurement, NitroPolicy, parse_document, verify
from attestation.roots import VENDOR
from tests.vectors import manifest, needs_vectors, read

pytestmark = needs_vectors
DOCUMENTS = manifest("nitro")
ACCEPTED = [entry for entry in DOCUMENTS if entry["expected"].startswith("ACCEPT")]


def _by_id(entry: dict[str, Any]) -> str:
    return str(entry["id"])


def _pinned(entry: dict[str, Any], **loosened: Any) -> NitroPolicy:
    """A policy that names exactly this document's image."""
    pcrs = parse_document(read(entry["files"][0])).pcrs
    measurement = NitroMeasurement(pcr0=pcrs[0], pcr1=pcrs[1], pcr2=pcrs[2])
    return NitroPolicy(
        measurements=(measurement,), any_nonce=True, any_user_data=True, any_public_key=True, **loosened
    )


@pytest.mark.parametrize("entry", DOCUMENTS, ids=_by_id)
def test_document_gets_its_verdict(entry: dict[str, Any]) -> None:
    """Accepted at its own time, refused when altered, and refused by policy alone when it is in debug mode."""
    data, expected = read(entry["files"][0]), entry["expected"]
    if expected.startswith("REJECT: COSE signature invalid"):
        with pytest.raises(VerificationError) as failed:
            verify(data, VENDOR.aws, parse_document(data).timestamp)
        assert failed.value.check is Check.NITRO_SIGNATURE
        return
    now = datetime.fromtimestamp(entry["now"], UTC)
    claims = verify(data, VENDOR.aws, now)
    assert claims.debug == entry["meta"]["debug"]
    assert claims.pcrs[0].hex() == entry["meta"]["pcr0"]
    assert claims.collateral_expires >= datetime.fromisoformat(entry["valid_to"])
    violations = _pinned(entry).check(claims, now)
    assert [v.check for v in violations] == ([Check.NITRO_DEBUG] if "debug-mode" in expected else [])
    assert _pinned(entry, allow_debug=True).check(claims, now) == []


@pytest.mark.parametrize("entry", ACCEPTED, ids=_by_id)
def test_document_is_refused_outside_its_window(entry: dict[str, Any]) -> None:
    """A second before and after the window in which all certificates are valid, the dates are what fails."""
    data, second = read(entry["files"][0]), timedelta(seconds=1)
    for now in (
        datetime.fromisoformat(entry["valid_from"]) - second,
        datetime.fromisoformat(entry["valid_to"]) + second,
    ):
        with pytest.raises(VerificationError) as failed:
            verify(data, VENDOR.aws, now)
        assert failed.value.check is Check.NITRO_CERTIFICATE_DATES


@pytest.mark.parametrize("entry", ACCEPTED, ids=_by_id)
def test_document_is_refused_without_its_root(entry: dict[str, Any]) -> None:
    """A chain that ends in Amazon's root proves nothing to a policy that trusts someone else."""
    with pytest.raises(VerificationError) as failed:
        verify(read(entry["files"][0]), VENDOR.intel, datetime.fromtimestamp(entry["now"], UTC))
    assert failed.value.check is Check.NITRO_ROOT


def test_every_truncation_is_malformed() -> None:
    """No prefix of a real document is one."""
    data = read(ACCEPTED[0]["files"][0])
    for size in range(len(data)):
        with pytest.raises(MalformedError):
            parse_document(data[:size])


def test_anything_after_the_document_is_malformed() -> None:
    """Not even zero bytes may follow."""
    for tail in (b"\0", b"\xff", b"x"):
        with pytest.raises(MalformedError):
            parse_document(read(ACCEPTED[0]["files"][0]) + tail)


@pytest.mark.slow
def test_every_bit_flip_is_refused() -> None:
    """Every bit of a real document matters: flipped, it is malformed or not authentic."""
    entry = ACCEPTED[0]
    data, now = read(entry["files"][0]), datetime.fromtimestamp(entry["now"], UTC)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises((MalformedError, VerificationError)):
            verify(bytes(flipped), VENDOR.aws, now)
