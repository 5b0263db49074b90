"""The simulated Intel as a tool: its keys can be shared, and nobody can take it for the real one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from attestation.errors import VerificationError
from attestation.roots import VENDOR, is_vendor
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx, TdxDefect
from attestation.tdx import parse_quote, verify

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_two_processes_share_a_root_through_a_directory(tmp_path: Path) -> None:
    """Keys are made once; evidence of one instance verifies with collateral and root of another."""
    first, second = (SimulatedTdx.load_or_create(tmp_path / "keys") for _ in range(2))
    assert first.root == second.root
    assert verify(first.quote(bytes(64)), second.collateral(NOW), (second.root,), NOW).root == first.root
    revoked = second.collateral(NOW, defect=TdxDefect.PCK_REVOKED)
    with pytest.raises(VerificationError):
        verify(first.quote(bytes(64)), revoked, (first.root,), NOW)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").iterdir())


def test_every_certificate_says_that_it_is_simulated(sim: SimulatedTdx) -> None:
    """Intel's role names are needed; the organisation and the user data tell people the truth."""
    quote, collateral = parse_quote(sim.quote(bytes(64))), sim.collateral(NOW)
    pem = (
        quote.pck_chain + collateral.tcb_info_issuer_chain.encode() + collateral.pck_crl_issuer_chain.encode()
    )
    for cert in x509.load_pem_x509_certificates(pem):
        assert "SIMULATED" in cert.subject.rfc4514_string()
    assert quote.user_data.startswith(b"SIMULATED")
    assert sim.root.name.startswith("SIMULATED")
    assert not is_vendor(sim.root)


def test_no_default_root_trusts_it(sim: SimulatedTdx) -> None:
    """Under Intel's own root its evidence is refused."""
    with pytest.raises(VerificationError):
        verify(sim.quote(bytes(64)), sim.collateral(NOW), VENDOR.intel, NOW)


def test_measurements_are_the_callers(sim: SimulatedTdx) -> None:
    """Any TD can be quoted."""
    td = replace(DEFAULT_TD15, mrtd=b"\x07" * 48, rtmr3=b"\x08" * 48)
    claims = verify(sim.quote(b"\x09" * 64, td=td, version=5), sim.collateral(NOW), (sim.root,), NOW)
    assert (claims.td.mrtd, claims.td.rtmr3, claims.report_data) == (td.mrtd, td.rtmr3, b"\x09" * 64)


def test_impossible_requests_are_refused(sim: SimulatedTdx) -> None:
    """Report data has 64 bytes, and version 4 has no TD 1.5."""
    with pytest.raises(ValueError, match="64 bytes"):
        sim.quote(b"short")
    with pytest.raises(ValueError, match="version 4"):
        sim.quote(bytes(64), td=DEFAULT_TD15)
    with pytest.raises(ValueError, match="583 bytes"):
        sim.quote(bytes(64), td=replace(DEFAULT_TD, mrtd=bytes(47)))
