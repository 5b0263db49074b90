"""Corners of TCB standing and of platform certificates that the made-up platforms do not reach."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from attestation.checks import Check
from attestation.errors import MalformedError, VerificationError
from attestation.simulator import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx
from attestation.simulator import tdx_collateral as intel
from attestation.simulator.pki import issue, name, p384_key
from attestation.simulator.tdx_pki import sgx_extension
from attestation.tdx import TcbStatus, TdxMeasurement, TdxPolicy, verify
from attestation.tdx.collateral import parse_tcb_info
from attestation.tdx.pck import _parse as parse_sgx_extension
from attestation.tdx.signature import verify_signed_by
from tests.attestation.tdx.second_opinion import ask

NOW = datetime(2026, 6, 1, tzinfo=UTC)
OLD_MODULE = replace(DEFAULT_TD15, tee_tcb_svn=bytes((2, *DEFAULT_TD15.tee_tcb_svn[1:])))
POLICY = TdxPolicy(measurements=(TdxMeasurement(mrtd=DEFAULT_TD.mrtd),))


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("UpToDate", TcbStatus.TD_RELAUNCH_ADVISED),
        ("SWHardeningNeeded", TcbStatus.TD_RELAUNCH_ADVISED),
        ("ConfigurationNeeded", TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED),
        ("OutOfDate", TcbStatus.OUT_OF_DATE),
    ],
)
def test_a_td_on_an_updated_host_needs_a_restart(
    sim: SimulatedTdx, platform: str, expected: TcbStatus
) -> None:
    """The TD began on an old module that is new by now; a policy still has to accept that by name."""
    info = intel.tcb_info(NOW)
    info["tcbLevels"] = [intel.platform_level(platform)]
    quote, collateral = sim.quote(bytes(64), td=OLD_MODULE, version=5), sim.collateral(NOW, info=info)
    claims = verify(quote, collateral, (sim.root,), NOW)
    assert claims.tcb_status == expected
    assert ask(quote, collateral, NOW, sim.root_der)[0] == expected
    assert [v.check for v in POLICY.check(claims, NOW)] == [Check.TDX_TCB_STATUS]
    assert replace(POLICY, accept_tcb_status=frozenset({expected})).check(claims, NOW) == []
    assert replace(POLICY, grace_days=9999).check(claims, NOW) == [] or expected is not TcbStatus.OUT_OF_DATE


def test_the_module_running_now_may_not_be_revoked_or_unknown(sim: SimulatedTdx) -> None:
    """A good launch does not outweigh a bad present."""
    info = intel.tcb_info(NOW)
    info["tdxModuleIdentities"][0]["tcbLevels"][0]["tcbStatus"] = "Revoked"  # version 3
    for now, check in ((3, Check.TDX_TCB_REVOKED), (9, Check.TDX_MODULE)):
        later = bytes((7, now, *DEFAULT_TD15.tee_tcb_svn[2:]))
        quote = sim.quote(bytes(64), td=replace(DEFAULT_TD15, tee_tcb_svn2=later), version=5)
        with pytest.raises(VerificationError) as caught:
            verify(quote, sim.collateral(NOW, info=info), (sim.root,), NOW)
        assert caught.value.check is check


def test_a_module_of_version_0_is_covered_by_the_platforms_level(sim: SimulatedTdx) -> None:
    """All sixteen TDX components count where no identity with levels covers the first two."""
    for svn, expected in ((5, TcbStatus.UP_TO_DATE), (4, TcbStatus.OUT_OF_DATE)):
        td = replace(DEFAULT_TD, tee_tcb_svn=bytes((svn, 0, *DEFAULT_TD.tee_tcb_svn[2:])))
        claims = verify(sim.quote(bytes(64), td=td), sim.collateral(NOW), (sim.root,), NOW)
        assert claims.tcb_status == expected
        assert claims.tcb.module_status is None


def test_collateral_without_modules_knows_no_module(sim: SimulatedTdx) -> None:
    """Missing identities are no permission."""
    info = intel.tcb_info(NOW)
    del info["tdxModule"], info["tdxModuleIdentities"]
    with pytest.raises(VerificationError) as caught:
        verify(sim.quote(bytes(64)), sim.collateral(NOW, info=info), (sim.root,), NOW)
    assert caught.value.check is Check.TDX_MODULE


def test_a_key_of_another_curve_signs_nothing() -> None:
    """Intel's quotes and collateral are signed on P-256; a certificate of P-384 is no substitute."""
    other = issue(name("Intel SGX TCB Signing"), p384_key(), not_before=NOW, not_after=NOW, ca=False)
    with pytest.raises(VerificationError) as caught:
        verify_signed_by(other.cert, bytes(64), b"data", Check.TDX_TCB_INFO_SIGNATURE, "TCB info")
    assert "P-256" in caught.value.detail


def test_hex_is_hex() -> None:
    """Letters that are none are refused."""
    text = intel.encode({**intel.tcb_info(NOW), "fmspc": "00000053494g"})
    with pytest.raises(MalformedError):
        parse_tcb_info(text)


@pytest.mark.parametrize(
    ("found", "replacement"),
    [
        (b"\x04\x06" + intel.FMSPC, b"\x04\x05" + intel.FMSPC[1:] + b"\x00"),  # five octets, and one too many
        (b"\x02\x01\x0d", b"\x02\x01\xff"),  # a negative PCESVN
        (b"\x02\x01\x0d", b"\x02\x00\x0d"),  # an integer without content
        (b"\x01\x01\xff", b"\x01\x01\x01"),  # a boolean that is neither
        (b"\x01\x02\x01", b"\x01\x02\x02"),  # one component twice, another missing
        (b"\x0a\x01\x01", b"\x02\x01\x01"),  # an integer for an enumeration
        (b"\x30\x10\x06\x0b", b"\x30\x84\x06\x0b"),  # a length that needs four bytes
    ],
)
def test_the_extension_has_one_way_to_be_written(found: bytes, replacement: bytes) -> None:
    """Sizes, signs, types and names inside Intel's extension are exact."""
    der = sgx_extension()
    assert found in der
    with pytest.raises((ValueError, KeyError, IndexError)):
        parse_sgx_extension(der.replace(found, replacement, 1))


def test_an_extension_field_of_another_size_is_refused() -> None:
    """An FMSPC of five bytes, with every length around it right, is still no FMSPC."""
    octets = b"\x30\x14\x06\x0a\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01\x04\x04\x06" + intel.FMSPC
    shorter = b"\x30\x13\x06\x0a\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01\x04\x04\x05" + intel.FMSPC[1:]
    der = sgx_extension()
    assert octets in der
    size = int.from_bytes(der[2:4], "big") - 1
    with pytest.raises(ValueError, match="5 octets"):
        parse_sgx_extension(b"\x30\x82" + size.to_bytes(2, "big") + der[4:].replace(octets, shorter))


def test_a_signature_has_one_length(sim: SimulatedTdx) -> None:
    """The same two numbers in more bytes are refused."""
    good = sim.collateral(NOW)
    signature = good.tcb_info_signature
    longer = replace(good, tcb_info_signature=signature[:32] + b"\0" + signature[32:])
    with pytest.raises(VerificationError) as caught:
        verify(sim.quote(bytes(64)), longer, (sim.root,), NOW)
    assert caught.value.check is Check.TDX_TCB_INFO_SIGNATURE
    assert "found 65" in caught.value.detail
